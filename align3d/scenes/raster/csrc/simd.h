// Vectors of L floats from compiler extensions (gcc, clang; any processor), and a parallel loop.
//
// Nothing here depends on -ffast-math: linking with it switches the whole process to flush-to-zero on some compilers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#else
#include <atomic>
#include <thread>
#include <vector>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef float vf_unaligned __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * L), aligned(4), may_alias));

static inline vf load(const float* p) { return *(const vf_unaligned*)p; }
static inline vi load(const int32_t* p) { return *(const vi_unaligned*)p; }
static inline void store(float* p, vf a) { *(vf_unaligned*)p = a; }
static inline void store(int32_t* p, vi a) { *(vi_unaligned*)p = a; }
static inline vf splat(float x) { return vf{} + x; }
static inline vi splat(int32_t x) { return vi{} + x; }
static inline vf keep(vi mask, vf a) { return (vf)((vi)a & mask); }  // 0 elsewhere, also where a is inf or nan
static inline vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
static inline vi choose(vi mask, vi a, vi b) { return (a & mask) | (b & ~mask); }
static inline vf min(vf a, vf b) { return a < b ? a : b; }
static inline vf max(vf a, vf b) { return a > b ? a : b; }
static inline vf to_float(vi a) { return __builtin_convertvector(a, vf); }
static inline vi truncate(vf a) { return __builtin_convertvector(a, vi); }  // towards zero; |a| < 2^31

static inline bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  int32_t bits = 0;
  for (int i = 0; i < L; i++) bits |= mask[i];
  return bits != 0;
#endif
}

static inline vf root(vf a) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)a);
#elif defined(__aarch64__)
  return (vf)vsqrtq_f32((float32x4_t)a);
#else
  for (int i = 0; i < L; i++) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

// exp(-s), relative error 2e-7. Values of s outside [0, 80] count as the nearer end.
static inline vf exp_minus(vf s) {
  s = min(max(s, splat(0.f)), splat(80.f));
  vf y = s * -1.44269504f;  // 2^y, y in [-116, 0]
  vi n = truncate(y - 0.5f);
  vf f = y - to_float(n);  // [-0.5, 0.5]
  vf p = f * 1.54035304e-4f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.f;
  return (vf)((vi)p + (n << 23));
}

// Natural logarithm of positive, normal numbers, relative error 1e-7.
static inline vf log_of(vf a) {
  vi bits = (vi)a, e = (bits - 0x3f3504f3) >> 23;  // a = m 2^e with m in [sqrt(1/2), sqrt(2))
  vf m = (vf)(bits - (e << 23)), t = (m - 1.f) / (m + 1.f), t2 = t * t;
  return to_float(e) * 0.693147181f + 2.f * t * (1.f + t2 * (1.f / 3 + t2 * (0.2f + t2 * (1.f / 7 + t2 / 9.f))));
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE2(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

// Lane i of the result: a[i] + a[i ^ H] where bit H of i is clear, b[i] + b[i ^ H] where it is set.
template <int H>
static inline vf fold(vf a, vf b) {
#define STAY(i) (((i) & H) ? (i) + L : (i))
#define SWAP(i) (((i) & H) ? ((i) ^ H) + L : ((i) ^ H))
#define FOUR(f, i) f(i), f(i + 1), f(i + 2), f(i + 3)
#if defined(__AVX512F__)
  return SHUFFLE2(a, b, FOUR(STAY, 0), FOUR(STAY, 4), FOUR(STAY, 8), FOUR(STAY, 12)) +
         SHUFFLE2(a, b, FOUR(SWAP, 0), FOUR(SWAP, 4), FOUR(SWAP, 8), FOUR(SWAP, 12));
#elif defined(__AVX2__)
  return SHUFFLE2(a, b, FOUR(STAY, 0), FOUR(STAY, 4)) + SHUFFLE2(a, b, FOUR(SWAP, 0), FOUR(SWAP, 4));
#else
  return SHUFFLE2(a, b, FOUR(STAY, 0)) + SHUFFLE2(a, b, FOUR(SWAP, 0));
#endif
}

template <int H>
struct Folds {
  static inline void run(vf* v) {
    for (int i = 0; i < H; i++) v[i] = fold<H>(v[i], v[i + H]);
    Folds<H / 2>::run(v);
  }
};
template <>
struct Folds<0> {
  static inline void run(vf*) {}
};

// The sums over lanes of 16 vectors, written to 16 floats; destroys v.
static inline void sum_lanes_16(vf* v, float* out) {
  for (int i = 0; i < 16; i += L) {
    Folds<L / 2>::run(v + i);
    store(out + i, v[i]);
  }
}

// body(i) for i in [0, tasks), on up to `threads` threads, in any order.
template <class Body>
static void parallel(int64_t tasks, int threads, const Body& body) {
  threads = (int)std::min<int64_t>(threads, tasks);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; i++) body(i);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < tasks; i++) body(i);
#else
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t i; (i = next++) < tasks;) body(i);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; t++) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
#endif
}
