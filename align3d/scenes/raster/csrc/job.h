// One call's sizes, settings and buffers; native.py fills the same struct. All buffers belong to Python.
#pragma once
#include "simd.h"

constexpr int TILE_W = 32, TILE_H = 16, TILE = TILE_W * TILE_H;  // pixels

// Floats of a projected Gaussian, and of its gradient from one tile: without and with depth and normals.
// Record:   mean x y, conic xx xy yy, opacity, squared reach | r g b | normal x y z, distance, slope x y
// Gradient: mean x y, conic xx xy yy, opacity                | r g b | normal x y z, distance, slope x y
template <bool GEO>
constexpr int FLOATS = GEO ? 16 : 12;
template <bool GEO>
constexpr int SUMS = GEO ? 7 : 3;  // rgb, normal, distance

struct Rect {
  int16_t x0, y0, x1, y1;  // pixels, inclusive; x1 < x0: not drawn
  bool empty() const { return x1 < x0; }
  int tiles_wide() const { return x1 / TILE_W - x0 / TILE_W + 1; }
  int tiles() const { return tiles_wide() * (y1 / TILE_H - y0 / TILE_H + 1); }
};

struct Job {
  int32_t B, V, N, H, W, threads;
  int32_t geometry, normalize, antialias;
  float eps2d, near, alpha_min, alpha_max, t_min;
  float background[3];
  // inputs
  const float *means, *quats, *scales, *opacities, *colors;  // (B N ...)
  const float *c2w, *K;                                      // (B V 4 4), (B V 3 3)
  const float* shift;                                        // (B V N 2) pixels added to the means, null if zero
  // kept for the backward pass; F = FLOATS<geometry>, T = tiles of an image
  float* records;      // (B V N F)
  float* z;            // (B V N)
  Rect* rects;         // (B V N)
  int32_t* offsets;    // (B V N) index of the first of a Gaussian's tile gradients, within its view
  int64_t* base;       // (B V + 1) the same, of a view
  int32_t* ids;        // (I) for each tile its Gaussians, front to back
  int32_t* starts;     // (B V (T + 1)) where a tile's list begins, within its view
  float* state;        // (B V T (SUMS + 1) TILE) sums and light left over; null: no backward pass will follow
  int32_t* median_id;  // (B V T TILE)
  // outputs, (B V C H W), null if not wanted
  float *rgb, *alpha, *depth, *median_depth, *normal;
  // gradients of the outputs, null if zero
  const float *g_rgb, *g_alpha, *g_depth, *g_median_depth, *g_normal;
  float* tile_grads;                                              // (I F)
  float *g_means, *g_quats, *g_scales, *g_opacities, *g_colors;  // (B N ...)
  float* g_shift;                                                 // (B V N 2), null if not wanted

  int64_t record_floats() const { return geometry ? FLOATS<true> : FLOATS<false>; }
  int across() const { return (W + TILE_W - 1) / TILE_W; }
  int down() const { return (H + TILE_H - 1) / TILE_H; }
  int tiles() const { return across() * down(); }
};

struct Camera {
  float R[9], centre[3];  // world to camera
  float fx, fy, cx, cy;
  float u_min, u_max, v_min, v_max;  // the ratios x/z and y/z are clamped to these in the linearised projection

  Camera(const Job& job, int64_t view) {
    const float *c2w = job.c2w + 16 * view, *K = job.K + 9 * view;
    for (int i = 0; i < 3; i++) {
      for (int j = 0; j < 3; j++) R[3 * i + j] = c2w[4 * j + i];
      centre[i] = c2w[4 * i + 3];
    }
    fx = K[0], fy = K[4], cx = K[2], cy = K[5];
    float mx = 0.15f * job.W / fx, my = 0.15f * job.H / fy;
    u_min = -cx / fx - mx, u_max = (job.W - cx) / fx + mx;
    v_min = -cy / fy - my, v_max = (job.H - cy) / fy + my;
  }
};
