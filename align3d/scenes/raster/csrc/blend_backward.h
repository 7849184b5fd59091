// Gradients of the finished channels, carried back to every (tile, Gaussian) pair.
//
// The tile is walked front to back once more. What lies behind a splat is the total minus what has been passed, so no
// division by the light left over is needed, and the same skip decisions are made as in the forward pass. Each pair
// writes its own record: no atomics, and the same bits for any number of threads.
#pragma once
#include "blend.h"

template <bool GEO>
struct SumGrads {
  Light light;
  alignas(64) float behind[TILE];         // gradient-weighted sum of everything not yet passed, background included
  alignas(64) float sum[SUMS<GEO>][TILE];  // gradients of the sums
  alignas(64) float median[GEO ? TILE : L];
  alignas(64) int32_t median_id[GEO ? TILE : L];
};

static inline void read_or_zero(const Job& job, const Tile& tile, const float* image, float* to) {
  std::memset(to, 0, 4 * TILE);
  if (image) read_plane(job, tile, image, to);
}

// From gradients of the channels to gradients of the sums along the rays.
template <bool GEO>
static inline void unfinish(const Job& job, const Tile& tile, const Lanes& lanes, SumGrads<GEO>& s) {
  const int64_t HW = (int64_t)job.H * job.W;
  auto plane = [&](const float* g, int C, int c) { return g ? g + (C * tile.view + c) * HW : nullptr; };
  alignas(64) float g_alphas[TILE];
  read_or_zero(job, tile, plane(job.g_alpha, 1, 0), g_alphas);
  for (int c = 0; c < 3; c++) {
    read_or_zero(job, tile, plane(job.g_rgb, 3, c), s.sum[c]);
    if (GEO) read_or_zero(job, tile, plane(job.g_normal, 3, c), s.sum[GEO ? 3 + c : 0]);
  }
  if (GEO) {
    read_or_zero(job, tile, plane(job.g_depth, 1, 0), s.sum[GEO ? 6 : 0]);
    read_or_zero(job, tile, plane(job.g_median_depth, 1, 0), s.median);
    std::memcpy(s.median_id, job.median_id + tile.index * TILE, 4 * TILE);
  }
  const Camera camera(job, tile.view);
  const float* state = job.state + tile.index * (SUMS<GEO> + 1) * TILE;
  for (int b = 0; b < TILE / L; b++) {
    const int o = b * L;
    vf left = load(state + SUMS<GEO> * TILE + o), g_left = -load(g_alphas + o), total = {};
    for (int c = 0; c < 3; c++) g_left += load(s.sum[c] + o) * job.background[c];
    if (GEO) {
      vf inverse_ray = 1.f / ray_length(camera, tile, lanes, b), alpha = 1.f - left;
      vf g_depth = keep(alpha > 0.f, load(s.sum[6] + o) * inverse_ray / alpha);
      g_left += keep(alpha > 0.f, g_depth * load(state + 6 * TILE + o) / alpha);
      store(s.sum[6] + o, g_depth);
      store(s.median + o, load(s.median + o) * inverse_ray);
      vf n[3], g[3];
      for (int c = 0; c < 3; c++) n[c] = load(state + (3 + c) * TILE + o), g[c] = load(s.sum[3 + c] + o);
      vf norm = root(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]), inverse = 1.f / max(norm, splat(NORM_MIN));
      vf along = keep(norm > NORM_MIN, (n[0] * g[0] + n[1] * g[1] + n[2] * g[2]) * inverse * inverse);
      for (int c = 0; c < 3; c++) store(s.sum[3 + c] + o, (g[c] - n[c] * along) * inverse);
    }
    for (int c = 0; c < SUMS<GEO>; c++) total += load(s.sum[c] + o) * load(state + c * TILE + o);
    store(s.behind + o, total + left * g_left);
  }
}

// The gradient record of one Gaussian in one tile; see job.h.
template <bool GEO>
static inline void splat_grad(const Job& job, const Tile& tile, const Lanes& lanes, int g, SumGrads<GEO>& s, float* out) {
  const int64_t row = tile.view * job.N + g;
  float e[FLOATS<GEO>];
  std::memcpy(e, job.records + FLOATS<GEO> * row, sizeof(e));
  const Footprint print(tile, job.rects[row], e);
  vf a0 = {}, ax = {}, ay = {}, axx = {}, axy = {}, ayy = {};  // moments of d loss / d log alpha
  vf f[6] = {}, t0 = {}, tx = {}, ty = {};                     // features, and moments of d loss / d distance
  bool seen = false;
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
      seen = true;
      vf w = keep(p.hit, p.alpha * p.before), value = {};
      for (int c = 0; c < (GEO ? 6 : 3); c++) {
        vf gc = load(s.sum[c] + o);
        value += gc * e[7 + c];
        f[c] += w * gc;
      }
      if (GEO) {
        vf gt = load(s.sum[6] + o), wt = w * gt;
        value += gt * (e[13] + e[14] * dx + e[15] * dy);
        wt += keep(p.hit & (load(s.median_id + o) == g), load(s.median + o));
        t0 += wt, tx += wt * dx, ty += wt * dy;
      }
      vf behind = load(s.behind + o) - w * value;
      store(s.behind + o, behind);
      vf slope = p.alpha_raw * (p.before * value - behind / (1.f - p.alpha));
      slope = keep(p.hit & (p.alpha_raw <= job.alpha_max), slope);  // last: other lanes may hold inf
      vf sx = slope * dx, sy = slope * dy;
      a0 += slope, ax += sx, ay += sy, axx += sx * dx, axy += sx * dy, ayy += sy * dy;
    }
  }
  if (!seen) {
    std::memset(out, 0, 4 * FLOATS<GEO>);
    return;
  }
  vf rows[16] = {ax, ay, axx, axy, ayy, a0, f[0], f[1], f[2]};
  if (GEO) rows[9] = f[3], rows[10] = f[4], rows[11] = f[5], rows[12] = t0, rows[13] = tx, rows[14] = ty;
  alignas(64) float sums[16];
  sum_lanes_16(rows, sums);
  const float x = sums[0], y = sums[1];
  sums[0] = -(e[2] * x + e[3] * y), sums[1] = -(e[3] * x + e[4] * y);
  if (GEO) sums[0] += e[14] * sums[12], sums[1] += e[15] * sums[12];
  sums[2] *= -0.5f, sums[3] = -sums[3], sums[4] *= -0.5f, sums[5] /= e[5];
  std::memcpy(out, sums, 4 * FLOATS<GEO>);
}

template <bool GEO>
static void unblend(const Job& job) {
  const Lanes lanes;
  parallel((int64_t)job.B * job.V * job.tiles(), job.threads, [&](int64_t task) {
    const Tile tile(job, task);
    if (tile.begin == tile.end) return;
    SumGrads<GEO> s;
    s.light.reset(job, tile);
    unfinish<GEO>(job, tile, lanes, s);
    const int32_t* ids = job.ids + job.base[tile.view];
    bool gone = false;
    for (int i = tile.begin; i < tile.end; i++) {
      if (!gone && ((i - tile.begin) & 31) == 31) gone = s.light.gone();
      const int64_t row = tile.view * job.N + ids[i];
      const Rect rect = job.rects[row];
      const int place = (tile.y / TILE_H - rect.y0 / TILE_H) * rect.tiles_wide() + tile.x / TILE_W - rect.x0 / TILE_W;
      float* out = job.tile_grads + FLOATS<GEO> * (job.base[tile.view] + job.offsets[row] + place);
      if (gone) {
        std::memset(out, 0, 4 * FLOATS<GEO>);
        continue;
      }
      if (i + 8 < tile.end) {
        const int64_t next = tile.view * job.N + ids[i + 8];
        __builtin_prefetch(job.records + FLOATS<GEO> * next);
        __builtin_prefetch(job.rects + next);
        __builtin_prefetch(job.offsets + next);
      }
      splat_grad<GEO>(job, tile, lanes, ids[i], s, out);
    }
  });
}
