// GELU, exact and by its tanh approximation, and their gradients.

#include "exponential.h"
#include "tensors.h"

namespace {

// The rational minimax approximation that Eigen and XLA use too; beyond 3.83, float32's error function is 1.
inline float Erf(float x) {
  constexpr float kOne = 3.8325069f;
  if (x > kOne) return 1.0f;
  if (x < -kOne) return -1.0f;
  const float z = x * x;
  float p = -2.72614225801306e-10f;
  p = p * z + 2.77068142495902e-08f;
  p = p * z - 2.10102402082508e-06f;
  p = p * z - 5.69250639462346e-05f;
  p = p * z - 7.34990630326855e-04f;
  p = p * z - 2.95459980854025e-03f;
  p = p * z - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * z - 2.13374055278905e-04f;
  q = q * z - 1.68282697438203e-03f;
  q = q * z - 7.37332916720468e-03f;
  q = q * z - 1.42647390514189e-02f;
  return x * p / q;
}

inline float NormalCdf(float x) { return 0.5f + 0.5f * Erf(x * 0.70710678f); }

constexpr float kTanh1 = 1.5957691216f, kTanh3 = 0.0713548163f;  // 2√(2/π), and 0.044715 times it

inline float TanhCdf(float x) { return 1.0f / (1.0f + Exp(-x * (kTanh1 + kTanh3 * x * x))); }

// y = function(x) for every element.
template <typename Function>
int Forward(void** tensors, const int* ranks, int64_t** shapes, Function function) {
  const float* x = Input(tensors, 0);
  float* y = Output(tensors, 1);
  const int64_t size = Size(ranks[0], shapes[0]);
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < size; ++i) y[i] = function(x[i]);
  return 0;
}

// dx = function(x, dy) for every element.
template <typename Function>
int Backward(void** tensors, const int* ranks, int64_t** shapes, Function function) {
  const float *x = Input(tensors, 0), *dy = Input(tensors, 1);
  float* dx = Output(tensors, 2);
  const int64_t size = Size(ranks[0], shapes[0]);
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < size; ++i) dx[i] = function(x[i], dy[i]);
  return 0;
}

}  // namespace

OPERATOR(gelu_exact) {
  return Forward(tensors, ranks, shapes, [](float x) { return x * NormalCdf(x); });
}

OPERATOR(gelu_exact_grad) {
  return Backward(tensors, ranks, shapes, [](float x, float dy) {
    return dy * (NormalCdf(x) + 0.39894228f * x * Exp(-0.5f * x * x));
  });
}

OPERATOR(gelu_tanh) {
  return Forward(tensors, ranks, shapes, [](float x) { return x * TanhCdf(x); });
}

OPERATOR(gelu_tanh_grad) {
  return Backward(tensors, ranks, shapes, [](float x, float dy) {
    const float cdf = TanhCdf(x);
    return dy * cdf * (1.0f + x * (1.0f - cdf) * (kTanh1 + 3.0f * kTanh3 * x * x));
  });
}
