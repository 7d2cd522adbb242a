// The weights of a step as one stream, in the order in which its products read them: what waiting
// threads ask memory for.
#include <algorithm>

#include "plan.hpp"

namespace coldpress {

namespace {

// A part of a second-level cache: what is asked for must still be there when it is read.
constexpr std::size_t kAheadBytes = 3 << 17;

}  // namespace

std::size_t Plan::enter(const Parts& parts) {
  Product product;
  for (const Part& part : parts.parts) {
    if (buffers_[part.out].routed) continue;  // whether an expert is read is not known before
    for (const ReadAhead::Span& span : part.matrix->spans()) product.spans.push_back(span);
  }
  products_.push_back(std::move(product));
  return products_.size() - 1;
}

void Plan::lay_out_stream() {
  stream_places_ = 0;
  for (Product& product : products_) {
    product.start = stream_places_;
    for (const ReadAhead::Span& span : product.spans)
      stream_places_ += ReadAhead::places(span.bytes);
  }
  for (std::size_t at = 0; at < products_.size(); ++at) {
    std::vector<ReadAhead::Span>& following = products_[at].following;
    following.clear();
    std::size_t left = kAheadBytes;
    // The last ones are followed by the first of the next step.
    for (std::size_t i = 1; i < products_.size(); ++i)
      for (ReadAhead::Span span : products_[(at + i) % products_.size()].spans) {
        span.bytes = std::min(span.bytes, left);
        left -= span.bytes;
        if (span.bytes > 0) following.push_back(span);
      }
  }
}

void Plan::announce_after(std::size_t product) {
  const bool last = product + 1 == products_.size();
  const std::uint64_t start = last ? stream_places_ : products_[product + 1].start;
  pool_->ahead().announce(products_[product].following, steps_ * stream_places_ + start);
}

}  // namespace coldpress
