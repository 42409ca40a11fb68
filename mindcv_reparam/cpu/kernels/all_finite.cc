// Whether a tensor has no infinity and no NaN.

#include "tensors.h"

// x → 1 or 0. By the bits of the exponent, all of which are set in what is not a number.
OPERATOR(all_finite) {
  const float* x = Input(tensors, 0);
  const int64_t size = Size(ranks[0], shapes[0]);
  uint32_t largest = 0;
#pragma omp parallel for simd schedule(static) reduction(max : largest)
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7f800000u;
    largest = bits > largest ? bits : largest;
  }
  *Output(tensors, 1) = largest < 0x7f800000u;
  return 0;
}
