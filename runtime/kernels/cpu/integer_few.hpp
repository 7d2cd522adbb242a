// The product of a row or two, which is done before memory has brought the matrix.
#pragma once

#include "kernels.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kFewRows = 2;

// out[rows, strip] = x[rows, columns] @ strip.T + start, for rows <= kFewRows.
void linear_int8_few(const MatrixView& m, int strip, const RoundedRows& x, int rows,
                     const float* start, float* out, std::size_t out_stride);

}  // namespace coldpress::COLDPRESS_ISA
