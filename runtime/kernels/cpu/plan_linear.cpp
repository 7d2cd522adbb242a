// Products with packed matrices: pieces are a strip of one of them times a run of rows.
#include <algorithm>
#include <stdexcept>

#include "plan.hpp"

namespace coldpress {

namespace {

// Rows that share one expansion of a strip: many enough to pay for it, few enough for the cache.
constexpr int kRowBlock = 96;
// What blocks have a multiple of, as tiles of rows have.
constexpr int kProductRows = 6;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

const char* product_name(const Matrix& matrix) {
  const MatrixView view = matrix.view();
  switch (view.codes_type) {
    case Codes::int4: return matrix.in_quads() ? "int4 by int8" : "int4 by float32";
    case Codes::int8: return matrix.in_quads() ? "int8 by int8" : "int8 by float32";
    case Codes::number: return view.number == Number::float32 ? "float32 by float32"
                                                              : "16 bits by float32";
    default: return "codebook by float32";
  }
}

}  // namespace

const Plan::Part& Plan::Parts::holding(int strip) const {
  auto part = parts.rbegin();
  while (part->first_strip > strip) ++part;
  return *part;
}

std::shared_ptr<const Plan::Parts> Plan::join(std::vector<Projection> projections) {
  auto joined = std::make_shared<Parts>();
  for (Projection& projection : projections) {
    Part part{projection.out, projection.matrix, projection.matrix->view(), {}, joined->strips};
    joined->strips += part.matrix->strips();
    if (!projection.bias.empty()) {
      part.bias = Memory<float>(static_cast<std::size_t>(part.matrix->strips()) * kStrip);
      std::copy(projection.bias.begin(), projection.bias.end(), part.bias.data());
    }
    joined->parts.push_back(std::move(part));
  }
  return joined;
}

template <class F>
void Plan::for_strips(const Batch& batch, const Parts& parts, F&& multiply) {
  const int rows = count(batch, rows_like(parts.parts.front().out));
  if (rows == 0) return;
  const int most = (rows + kRowBlock - 1) / kRowBlock;
  const int block = static_cast<int>(round_up((rows + most - 1) / most, kProductRows));
  const int blocks = (rows + block - 1) / block;
  pool_->run(blocks * parts.strips, [&](int piece, int thread) {
    const int strip = piece % parts.strips;
    const int first = piece / parts.strips * block;
    const Part& part = parts.holding(strip);
    multiply(part, strip - part.first_strip, first, std::min(block, rows - first), thread);
  });
}

void Plan::add_linear(BufferId x, std::vector<Projection> projections) {
  require(!projections.empty(), "a product needs a matrix");
  for (const Projection& each : projections)
    require(!each.matrix->in_quads(), "a matrix in quads multiplies int8 alone");
  const char* name = product_name(*projections.front().matrix);
  const std::shared_ptr<const Parts> parts = join(std::move(projections));
  add_op(name, [this, x, parts, at = enter(*parts)](const Batch& batch) {
    announce_after(at);
    for_strips(batch, *parts, [&](const Part& part, int strip, int first, int rows, int thread) {
      const Buffer& out = buffers_[part.out];
      kernels_.linear(part.view, strip, buffers_[x].row(first), buffers_[x].stride, rows,
                      part.bias.empty() ? nullptr : part.bias.data(), out.row(first), out.stride,
                      scratch_[thread].data());
    });
  });
}

Plan::BufferId Plan::add_rounded_buffer(int width, bool selected, bool routed) {
  rounded_.push_back({width, round_up(width, kStrip), selected, routed, 0, {}, {}, {}});
  return static_cast<BufferId>(rounded_.size()) - 1;
}

void Plan::add_quantize(BufferId out, BufferId x, Rounding rounding) {
  require(rounding.group % kRun == 0, "rounded groups are rows or multiples of 32 columns");
  const Rows rows{rounded_[out].selected, rounded_[out].routed};
  const std::size_t cost = 2 * buffers_[x].stride;
  add_row_op("quantize", rows, cost, [this, out, x, rounding](const Batch&, int row) {
    const RoundedBuffer& to = rounded_[out];
    kernels_.quantize_row(buffers_[x].row(row), to.width, rounding,
                          to.codes.data() + row * to.stride,
                          to.scales.data() + row * (to.stride / kRun),
                          to.sums.data() + row * (to.stride / kSumRun));
  });
}

void Plan::add_linear_int8(BufferId x, std::vector<Projection> projections) {
  require(!projections.empty(), "a product needs a matrix");
  for (const Projection& each : projections)
    require(each.matrix->in_quads(), "integer products need a matrix in quads");
  const char* name = product_name(*projections.front().matrix);
  const std::shared_ptr<const Parts> parts = join(std::move(projections));
  add_op(name, [this, x, parts, at = enter(*parts)](const Batch& batch) {
    announce_after(at);
    const RoundedRows from = rounded_[x].rows();
    for_strips(batch, *parts, [&](const Part& part, int strip, int first, int rows, int) {
      const Buffer& out = buffers_[part.out];
      kernels_.linear_int8(part.view, strip, from.from(first), rows,
                           part.bias.empty() ? nullptr : part.bias.data(), out.row(first),
                           out.stride);
    });
  });
}

}  // namespace coldpress
