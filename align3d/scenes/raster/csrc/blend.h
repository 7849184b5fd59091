// Front-to-back compositing of one tile, the finished channels, and the gradients of both.
#pragma once
#include "tiles.h"

constexpr float NORM_MIN = 1e-6f;

// Light left over per pixel; finished pixels, and those outside the image, are stored negative.
struct Light {
  alignas(64) float left[TILE];

  void reset(const Job& job, const Tile& tile) {
    for (float& x : left) x = -1.f;
    for_rows(job, tile, [&](int t, int64_t, int n) {
      for (int i = 0; i < n; i++) left[t + i] = 1.f;
    });
  }
  bool gone() const {
    vf most = load(left);
    for (int i = L; i < TILE; i += L) most = max(most, load(left + i));
    return !any(most > 0.f);
  }
};

// One splat on L pixels: the decisions that forward and backward must share.
struct Splat {
  vf power, alpha_raw, alpha, before, after;
  vi hit;

  // False if it reaches none of them: most blocks behind a surface, and the corners of bounding boxes, end here.
  inline bool reaches(const float* e, vf dx, vf dy, const float* light) {
    before = load(light);
    power = 0.5f * (e[2] * dx * dx + e[4] * dy * dy) + e[3] * dx * dy;
    hit = (power >= 0.f) & (power <= 0.5f * e[6]) & (before > 0.f);
    return any(hit);
  }

  inline void pass(const Job& job, const float* e, float* light) {
    alpha_raw = e[5] * exp_minus(power);
    alpha = min(alpha_raw, splat(job.alpha_max));
    hit &= alpha >= job.alpha_min;
    after = before * (1.f - alpha);
    vi full = hit & (after <= job.t_min);
    hit &= ~full;
    store(light, choose(hit, after, choose(full, -before, before)));
  }
};

template <bool GEO>
struct Sums {
  Light light;
  alignas(64) float sum[SUMS<GEO>][TILE];
  alignas(64) float median[GEO ? TILE : L];
  alignas(64) int32_t median_id[GEO ? TILE : L];
};

template <bool GEO>
static inline void add_splat(const Job& job, const Tile& tile, const Lanes& lanes, int g, Sums<GEO>& s) {
  const int64_t row = tile.view * job.N + g;
  float e[FLOATS<GEO>];
  std::memcpy(e, job.records + FLOATS<GEO> * row, sizeof(e));
  const Footprint print(tile, job.rects[row], e);
  for (int by = print.by0; by <= print.by1; by++) {
    int first, last;
    print.row(by, first, last);
    vf dy = (print.mean_y - by * BLOCK_H) - lanes.y;
    for (int bx = first; bx <= last; bx++) {
      const int o = (by * BLOCKS_X + bx) * L;
      vf dx = (print.mean_x - bx * BLOCK_W) - lanes.x;
      Splat p;
      if (!p.reaches(e, dx, dy, s.light.left + o)) continue;
      p.pass(job, e, s.light.left + o);
      vf w = keep(p.hit, p.alpha * p.before);
      for (int c = 0; c < (GEO ? 6 : 3); c++) store(s.sum[c] + o, load(s.sum[c] + o) + w * e[7 + c]);
      if (!GEO) continue;
      vf distance = e[13] + e[14] * dx + e[15] * dy;
      store(s.sum[6] + o, load(s.sum[6] + o) + w * distance);
      vi front = p.hit & (p.before > 0.5f);
      store(s.median + o, choose(front, distance, load(s.median + o)));
      store(s.median_id + o, choose(front, splat(g), load(s.median_id + o)));
    }
  }
}

// |ray through the pixel| / camera z of the ray, for one block.
static inline vf ray_length(const Camera& camera, const Tile& tile, const Lanes& lanes, int block) {
  vf u = (lanes.x + (tile.x + block % BLOCKS_X * BLOCK_W - camera.cx)) / camera.fx;
  vf v = (lanes.y + (tile.y + block / BLOCKS_X * BLOCK_H - camera.cy)) / camera.fy;
  return root(u * u + v * v + 1.f);
}

// Turns the sums into finished channels, in place, and writes those that are wanted.
template <bool GEO>
static inline void finish(const Job& job, const Tile& tile, const Lanes& lanes, Sums<GEO>& s) {
  const Camera camera(job, tile.view);
  alignas(64) float alphas[TILE];
  for (int b = 0; b < TILE / L; b++) {
    const int o = b * L;
    vf left = load(s.light.left + o), alpha = 1.f - left;
    store(alphas + o, alpha);
    for (int c = 0; c < 3; c++) store(s.sum[c] + o, load(s.sum[c] + o) + left * job.background[c]);
    if (!GEO) continue;
    vf inverse_ray = 1.f / ray_length(camera, tile, lanes, b), n[3];
    for (int c = 0; c < 3; c++) n[c] = load(s.sum[3 + c] + o);
    vf inverse_norm = 1.f / max(root(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]), splat(NORM_MIN));
    for (int c = 0; c < 3; c++) store(s.sum[3 + c] + o, n[c] * inverse_norm);
    store(s.sum[6] + o, keep(alpha > 0.f, load(s.sum[6] + o) / alpha * inverse_ray));
    store(s.median + o, load(s.median + o) * inverse_ray);
  }
  const int64_t HW = (int64_t)job.H * job.W;
  for (int c = 0; c < 3; c++) {
    if (job.rgb) write_plane(job, tile, s.sum[c], job.rgb + (3 * tile.view + c) * HW);
    if (GEO && job.normal) write_plane(job, tile, s.sum[GEO ? 3 + c : 0], job.normal + (3 * tile.view + c) * HW);
  }
  if (job.alpha) write_plane(job, tile, alphas, job.alpha + tile.view * HW);
  if (GEO && job.depth) write_plane(job, tile, s.sum[GEO ? 6 : 0], job.depth + tile.view * HW);
  if (GEO && job.median_depth) write_plane(job, tile, s.median, job.median_depth + tile.view * HW);
}

template <bool GEO>
static void blend(const Job& job) {
  const Lanes lanes;
  parallel((int64_t)job.B * job.V * job.tiles(), job.threads, [&](int64_t task) {
    const Tile tile(job, task);
    Sums<GEO> s;
    s.light.reset(job, tile);
    std::memset(s.sum, 0, sizeof(s.sum));
    std::memset(s.median, 0, sizeof(s.median));
    std::memset(s.median_id, -1, sizeof(s.median_id));
    const int32_t* ids = job.ids + job.base[tile.view];
    for (int i = tile.begin; i < tile.end; i++) {
      if (((i - tile.begin) & 31) == 31 && s.light.gone()) break;
      if (i + 8 < tile.end) {
        __builtin_prefetch(job.records + FLOATS<GEO> * (tile.view * job.N + ids[i + 8]));
        __builtin_prefetch(job.rects + tile.view * job.N + ids[i + 8]);
      }
      add_splat<GEO>(job, tile, lanes, ids[i], s);
    }
    for (float& x : s.light.left) x = std::abs(x);
    if (job.state) {
      float* state = job.state + tile.index * (SUMS<GEO> + 1) * TILE;
      std::memcpy(state, s.sum, sizeof(s.sum));
      std::memcpy(state + SUMS<GEO> * TILE, s.light.left, sizeof(s.light.left));
      if (GEO) std::memcpy(job.median_id + tile.index * TILE, s.median_id, 4 * TILE);
    }
    finish<GEO>(job, tile, lanes, s);
  });
}
