// Tokens that are drawn behind a step.
#include "plan.hpp"

namespace coldpress {

std::vector<std::int32_t> Plan::draw(const std::vector<RowDraw>& draws, int width) {
  const std::size_t room = 2 * static_cast<std::size_t>(width);
  if (drawn_.empty() || drawn_[0].size() < room) {
    drawn_.clear();
    for (int thread = 0; thread < pool_->size(); ++thread) drawn_.emplace_back(room);
  }
  std::vector<std::int32_t> tokens(draws.size());
  pool_->run(static_cast<int>(draws.size()), [&](int i, int thread) {
    float* values = drawn_[thread].data();
    auto* ids = reinterpret_cast<std::int32_t*>(values + width);
    tokens[i] = kernels_.draw(draws[i].row, width, draws[i].options, values, ids);
  });
  return tokens;
}

}  // namespace coldpress
