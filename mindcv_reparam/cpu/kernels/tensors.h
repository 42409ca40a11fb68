// What all kernels share: ahead-of-time custom operators of MindSpore in float32, NCHW.
//
// Every operator is a function (number of tensors, their data, ranks, shapes, types, stream, extra) → 0; the tensors
// are its inputs, then its outputs. Sums run in a fixed order, so that results do not depend on the thread count.

#pragma once

#include <cstdint>
#include <cstring>

#define OPERATOR(name) \
  extern "C" int name([[maybe_unused]] int count, void** tensors, [[maybe_unused]] int* ranks, \
                      [[maybe_unused]] int64_t** shapes, const char**, void*, void*)

// Floats of a vector register: compilers keep vectors of no other length in registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Lanes Load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void Store(Lanes lanes, float* to) { *reinterpret_cast<Lanes*>(to) = lanes; }

inline float Sum(Lanes value) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += value[i];
  return sum;
}

inline const float* Input(void** tensors, int i) { return static_cast<const float*>(tensors[i]); }
inline float* Output(void** tensors, int i) { return static_cast<float*>(tensors[i]); }

inline int64_t Size(int rank, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < rank; ++i) size *= shape[i];
  return size;
}

struct Moments {  // of numbers: their mean, and the sum of their squared distances from it
  double mean, squares;
};

inline Moments MomentsOf(const float* x, int64_t size) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i];
  const float mean = sum / size;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, squares};
}

inline int64_t RoundUp(int64_t value) { return (value + kLanes - 1) / kLanes * kLanes; }
