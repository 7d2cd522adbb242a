// What this processor can do at the most, for those who compare.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "thread_pool.hpp"

namespace coldpress {

namespace {

class Probe {
 public:
  // bytes: what read() reads, all threads together.
  Probe(std::shared_ptr<ThreadPool> pool, const std::string& isa, std::size_t bytes)
      : pool_(std::move(pool)),
        kernels_(find_kernels(isa.c_str())),
        share_(round_up(std::max<std::size_t>(bytes / pool_->size(), 1), kProbedBytes)),
        memory_(share_ * pool_->size(), Streamed{}) {
    if (kernels_ == nullptr)
      throw std::invalid_argument("this processor has no instruction set named " + isa);
    pool_->run(pool_->size(), [&](int piece, int) {
      std::fill_n(memory_.data() + piece * share_, share_, std::uint8_t{1});
    });
  }

  std::size_t read() {
    std::vector<std::uint32_t> left(pool_->size());
    pool_->run(pool_->size(), [&](int piece, int) {
      left[piece] = kernels_->read_bytes(memory_.data() + piece * share_, share_);
    });
    return share_ * pool_->size();
  }

  std::int64_t multiply(int rounds) {
    std::vector<std::int64_t> made(pool_->size());
    std::vector<std::uint32_t> left(pool_->size());
    pool_->run(pool_->size(), [&](int piece, int) {
      made[piece] = kernels_->multiply_bytes(rounds, &left[piece]);
    });
    std::int64_t sum = 0;
    for (const std::int64_t each : made) sum += each;
    return sum;
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
  const KernelTable* kernels_;
  std::size_t share_;
  Memory<std::uint8_t> memory_;
};

}  // namespace

void bind_probe(nb::module_& m) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Probe>(m, "Probe")
      .def(nb::init<std::shared_ptr<ThreadPool>, const std::string&, std::size_t>(),
           nb::arg("pool"), nb::arg("isa"), nb::arg("size_bytes"))
      .def("read", &Probe::read, Released())
      .def("multiply", &Probe::multiply, nb::arg("rounds"), Released());
}

}  // namespace coldpress
