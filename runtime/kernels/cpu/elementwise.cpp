// Norms and activations, and the table of this instruction set's kernels.
#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

void linear(const MatrixView&, int, const float*, std::size_t, int, const float*, float*,
            std::size_t, float*);
void attend(const AttentionView&, const QueryRow*, int, const std::int32_t*, int, int,
            const void* const*, float*, float*);
void join(const AttentionView&, int, const float*, float*);
void finish(const AttentionView&, const QueryRow*, int, const float*);
void narrow(const float*, int, std::uint16_t*);
void narrow_bfloat16(const float*, int, std::uint16_t*);
float narrow_int8(const float*, int, std::int8_t*);
void round_row(const float*, int, const Rounding&, float*);
void quantize_row(const float*, int, const Rounding&, std::int8_t*, float*, std::int32_t*);
void linear_int8(const MatrixView&, int, const RoundedRows&, int, const float*, float*,
                 std::size_t);
int draw(const float*, int, const DrawOptions&, float*, std::int32_t*);
std::int64_t multiply_bytes(int, std::uint32_t*);
std::uint32_t read_bytes(const void*, std::size_t);

inline float sum_of_squares(const float* x, int n) {
  Vec sums = splat(0.0F);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) sums = fma(load(x + i), load(x + i), sums);
  float sum = sum_lanes(sums);
  for (; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void rms_norm(const float* x, const float* weight, int runs, int size, float eps, float* out) {
  for (int run = 0; run < runs; ++run, x += size, out += size) {
    const float mean = sum_of_squares(x, size) / static_cast<float>(size);
    const float factor = 1.0F / __builtin_sqrtf(mean + eps);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes)
      store(out + i, mul(mul(load(x + i), splat(factor)), load(weight + i)));
    for (; i < size; ++i) out[i] = x[i] * factor * weight[i];
  }
}

inline Vec silu(Vec x) { return div(x, add(splat(1.0F), exp(sub(splat(0.0F), x)))); }

inline Vec gelu_tanh(Vec x) {
  const Vec cube = mul(mul(x, x), x);
  const Vec inner = mul(splat(0.7978845608F), fma(splat(0.044715F), cube, x));
  return mul(mul(splat(0.5F), x), add(splat(1.0F), tanh(inner)));
}

// n is a multiple of kPad: rows are padded.
void gated_act(const float* gate, const float* up, std::size_t n, Activation activation,
               float* out) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const Vec x = load(gate + i);
    const Vec y = activation == Activation::silu ? silu(x) : gelu_tanh(x);
    store(out + i, mul(y, load(up + i)));
  }
}

void softcap(float* x, std::size_t n, float cap) {
  for (std::size_t i = 0; i < n; i += kLanes)
    store(x + i, mul(splat(cap), tanh(div(load(x + i), splat(cap)))));
}

// n is a multiple of kPad: rows are padded.
void add_rows(const float* a, const float* b, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; i += kLanes) store(out + i, add(load(a + i), load(b + i)));
}

void rope(const float* x, const float* cosines, const float* sines, int heads, int head_dim,
          int half, float* out) {
  for (int h = 0; h < heads; ++h, x += head_dim, out += head_dim) {
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec first = load(x + i);
      const Vec second = load(x + i + half);
      const Vec cosine = load(cosines + i);
      const Vec sine = load(sines + i);
      store(out + i, sub(mul(first, cosine), mul(second, sine)));
      store(out + i + half, add(mul(second, cosine), mul(first, sine)));
    }
    for (; i < half; ++i) {
      const float first = x[i];
      const float second = x[i + half];
      out[i] = first * cosines[i] - second * sines[i];
      out[i + half] = second * cosines[i] + first * sines[i];
    }
    for (i = 2 * half; i < head_dim; ++i) out[i] = x[i];
  }
}

// The first of the largest numbers; or the first that is none. Blocks are small enough to be in the
// first-level cache when they are looked at again.
int argmax(const float* x, int n) {
  constexpr int kBlock = 1024;
  float largest = -__builtin_inff();
  int first = 0;
  for (int from = 0; from < n; from += kBlock) {
    const int end = from + kBlock < n ? from + kBlock : n;
    int strange = 0;
    for (int i = from; i < end; ++i) strange |= static_cast<int>(x[i] != x[i]);
    if (strange != 0) {
      while (x[from] == x[from]) ++from;
      return from;
    }
    Vec most = splat(largest);
    int i = from;
    for (; i + kLanes <= end; i += kLanes) most = max(most, load(x + i));
    float found = max_lanes(most);
    for (; i < end; ++i) found = x[i] > found ? x[i] : found;
    if (found > largest) {
      largest = found;
      first = from;
    }
  }
  while (x[first] != largest) ++first;
  return first;
}

#define COLDPRESS_STRING(name) #name
#define COLDPRESS_NAME(name) COLDPRESS_STRING(name)

extern const KernelTable kTable;
const KernelTable kTable = {COLDPRESS_NAME(COLDPRESS_ISA),
                            linear,
                            attend,
                            join,
                            finish,
                            narrow,
                            narrow_bfloat16,
                            narrow_int8,
                            rms_norm,
                            gated_act,
                            softcap,
                            add_rows,
                            rope,
                            round_row,
                            quantize_row,
                            linear_int8,
                            argmax,
                            draw,
                            multiply_bytes,
                            read_bytes};

}  // namespace coldpress::COLDPRESS_ISA
