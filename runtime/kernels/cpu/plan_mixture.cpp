// Mixtures of experts: which rows go to which expert, and the sum of what comes back.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan.hpp"

namespace coldpress {

namespace {

// The `chosen` largest logits' places, the first of equal ones first, in falling order.
void choose(const float* logits, int chosen, std::vector<int>& order) {
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + chosen, order.end(), [&](int a, int b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
}

}  // namespace

void Plan::add_route(BufferId out, BufferId logits, int chosen, bool normalized) {
  const int experts = buffers_[logits].width;
  if (chosen < 1 || chosen > experts)
    throw std::invalid_argument("a row is sent to 1 expert at least and to all at most");
  add_op("route", [this, out, logits, chosen, normalized, experts](const Batch& batch) {
    routes_.resize(experts);
    for (Route& route : routes_) {
      route.rows.clear();
      route.factors.clear();
    }
    std::vector<int> order(experts);
    for (int t = 0; t < batch.tokens; ++t) {
      const float* row = buffers_[logits].row(t);
      choose(row, chosen, order);
      const auto share = [&](int expert) {
        return std::exp(static_cast<double>(row[expert]) - row[order[0]]);
      };
      double total = 0.0;
      for (int e = 0; e < (normalized ? chosen : experts); ++e) total += share(order[e]);
      for (int e = 0; e < chosen; ++e) {
        routes_[order[e]].rows.push_back(t);
        routes_[order[e]].factors.push_back(static_cast<float>(share(order[e]) / total));
      }
      std::fill_n(buffers_[out].row(t), buffers_[out].stride, 0.0F);
    }
  });
}

void Plan::add_send(BufferId out, BufferId x, int expert) {
  add_op("send", [this, out, x, expert](const Batch&) {
    expert_ = expert;
    const std::vector<int>& rows = routes_[expert].rows;
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::copy_n(buffers_[x].row(rows[i]), buffers_[x].width, buffers_[out].row(i));
  });
}

void Plan::add_collect(BufferId out, BufferId x) {
  add_op("collect", [this, out, x](const Batch&) {
    const Route& route = routes_[expert_];
    for_rows(static_cast<int>(route.rows.size()), buffers_[x].stride, [&](int i) {
      const float* from = buffers_[x].row(i);
      float* to = buffers_[out].row(route.rows[i]);
      for (int k = 0; k < buffers_[out].width; ++k) to[k] += from[k] * route.factors[i];
    });
  });
}

}  // namespace coldpress
