// Gradients of the projected Gaussians, summed over tiles and views and carried back to the 3D Gaussians.
#pragma once
#include "project.h"

// Gradients with respect to what does not depend on the camera, summed over the views.
struct ShapeGrads {
  vf mean[3] = {}, M[9] = {}, C[9] = {}, scale[3] = {}, opacity = {}, color[3] = {};
};

// The sum of the tiles' gradients of L Gaussians in one view, a vector per field; false if there are none.
template <bool GEO>
static inline bool gather(const Job& job, int64_t view, int g, int lanes, vf* G, vi& drawn) {
  constexpr int F = FLOATS<GEO>;
  alignas(64) float sums[L][16];
  drawn = vi{};
  for (int l = 0; l < lanes; l++) {
    const int64_t row = view * job.N + g + l;
    const Rect rect = job.rects[row];
    if (rect.empty()) continue;
    drawn[l] = -1;
    const float* from = job.tile_grads + F * (job.base[view] + job.offsets[row]);
    float sum[F];
    std::memcpy(sum, from, sizeof(sum));
    for (int t = 1; t < rect.tiles(); t++)
      for (int i = 0; i < F; i++) sum[i] += from[F * t + i];
    std::memcpy(sums[l], sum, sizeof(sum));
  }
  if (!any(drawn)) return false;
  alignas(64) float columns[F][L] = {};
  for (int l = 0; l < lanes; l++)
    if (drawn[l])
      for (int i = 0; i < F; i++) columns[i][l] = sums[l][i];
  for (int i = 0; i < F; i++) G[i] = load(columns[i]);
  return true;
}

// Adds the gradients that come through one view.
template <bool GEO>
static inline void unproject_view(const Job& job, const Camera& camera, const Shape& shape, const Seen<GEO>& s,
                                  const vf* G, ShapeGrads& out) {
  out.opacity += G[5] * s.kept;
  for (int i = 0; i < 3; i++) out.color[i] += G[6 + i];
  // conic = covariance^-1, so the gradient is -conic G conic; the off-diagonal counts twice
  vf A = s.conic_xx, B = s.conic_xy, C = s.conic_yy, g_xx = G[2], g_xy = 0.5f * G[3], g_yy = G[4];
  vf p00 = A * g_xx + B * g_xy, p01 = A * g_xy + B * g_yy, p10 = B * g_xx + C * g_xy, p11 = B * g_xy + C * g_yy;
  vf v_xx = -(p00 * A + p01 * B), v_yy = -(p10 * B + p11 * C), v_xy = -(p00 * B + p01 * C + p10 * A + p11 * B);
  if (job.antialias) {  // kept^2 = det0 / det
    vf g = G[5] * shape.opacity * 0.5f * s.kept, i0 = 1.f / max(s.det0, splat(TINY)), i1 = 1.f / s.det;
    v_xx += g * ((s.yy - job.eps2d) * i0 - s.yy * i1);
    v_yy += g * ((s.xx - job.eps2d) * i0 - s.xx * i1);
    v_xy -= g * 2.f * s.xy * (i0 - i1);
  }
  vf g_a[3], g_b[3], g_row_x[3], g_row_y[3];
  for (int j = 0; j < 3; j++) {
    g_a[j] = 2.f * v_xx * s.a[j] + v_xy * s.b[j];
    g_b[j] = 2.f * v_yy * s.b[j] + v_xy * s.a[j];
  }
  for (int i = 0; i < 3; i++) {
    g_row_x[i] = dot(shape.M + 3 * i, g_a), g_row_y[i] = dot(shape.M + 3 * i, g_b);
    for (int j = 0; j < 3; j++) out.M[3 * i + j] += s.row_x[i] * g_a[j] + s.row_y[i] * g_b[j];
  }
  vf g_uc = -camera.fx * s.iz * dot(camera.R + 6, g_row_x), g_vc = -camera.fy * s.iz * dot(camera.R + 6, g_row_y);
  vf g_z = -s.iz * (dot(s.row_x, g_row_x) + dot(s.row_y, g_row_y));
  vf g_u = camera.fx * G[0] + keep(s.u == s.uc, g_uc), g_v = camera.fy * G[1] + keep(s.v == s.vc, g_vc);
  vf g_d[3] = {};
  if (GEO) {
    vf g_slope_x = G[13] * s.distance / camera.fx, g_slope_y = G[14] * s.distance / camera.fy, i_cos = 1.f / s.cos;
    vf g_distance = G[12] + (G[13] * s.slope_x + G[14] * s.slope_y) / s.distance;
    vf g_mx = g_slope_x * i_cos, g_my = g_slope_y * i_cos;
    vf g_cos = keep(s.raw_cos > PLANE_COS_MIN, -(g_mx * s.mx + g_my * s.my) * i_cos);
    vf g_ln2 = (g_slope_x * s.u + g_slope_y * s.v) * s.inverse_ln2 * s.inverse_ln2;
    g_u += 2.f * s.u * g_ln2 - g_slope_x * s.inverse_ln2;
    g_v += 2.f * s.v * g_ln2 - g_slope_y * s.inverse_ln2;
    g_z -= g_cos * s.raw_cos * s.iz;
    vf g_m[3], scaled[3], g_local[3];
    for (int i = 0; i < 3; i++) {
      g_m[i] = camera.R[i] * g_mx + camera.R[3 + i] * g_my + g_cos * s.iz * s.d[i] - G[9 + i];
      g_d[i] += g_cos * s.iz * s.m[i] + g_distance * s.d[i] / s.distance;
    }
    vf along = dot(g_m, s.m), i_norm = 1.f / s.m_norm;
    for (int i = 0; i < 3; i++) g_m[i] = (g_m[i] - s.m[i] * along) * i_norm;
    for (int j = 0; j < 3; j++) {
      vf h = shape.C[j] * g_m[0] + shape.C[3 + j] * g_m[1] + shape.C[6 + j] * g_m[2];
      scaled[j] = shape.weight[j] * s.local[j], g_local[j] = shape.weight[j] * h;
      out.scale[j] -= keep(shape.scale[j] >= SCALE_MIN, 2.f * scaled[j] * h / shape.safe_scale[j]);
    }
    for (int i = 0; i < 3; i++) {
      for (int j = 0; j < 3; j++) out.C[3 * i + j] += g_m[i] * scaled[j] + s.d[i] * g_local[j];
      g_d[i] += dot(shape.C + 3 * i, g_local);
    }
  }
  vf g_x = g_u * s.iz, g_y = g_v * s.iz;
  g_z -= (g_u * s.u + g_v * s.v) * s.iz;
  for (int i = 0; i < 3; i++)
    out.mean[i] += g_d[i] + camera.R[i] * g_x + camera.R[3 + i] * g_y + camera.R[6 + i] * g_z;
}

// From gradients of M = R diag(scale) and of the cofactors of R to those of quaternion and scale.
template <bool GEO>
static inline void unshape(const Job& job, const Shape& shape, ShapeGrads& g, vf* g_q) {
  vf G[9];
  for (int i = 0; i < 9; i++) {
    G[i] = g.M[i] * shape.scale[i % 3];
    g.scale[i % 3] += g.M[i] * shape.R[i];
  }
  if (GEO && job.normalize) {
    for (int i = 0; i < 9; i++) G[i] += g.C[i];
  } else if (GEO) {
    for (int i = 0; i < 3; i++) {  // row i of C is (row i + 1) x (row i + 2) of R
      const int a = 3 * ((i + 1) % 3), b = 3 * ((i + 2) % 3);
      add_cross(shape.R + b, g.C + 3 * i, G + a);
      add_cross(g.C + 3 * i, shape.R + a, G + b);
    }
  }
  vf w = shape.q[0], x = shape.q[1], y = shape.q[2], z = shape.q[3];
  g_q[0] = 2.f * (x * (G[7] - G[5]) + y * (G[2] - G[6]) + z * (G[3] - G[1]));
  g_q[1] = 2.f * (y * (G[1] + G[3]) + z * (G[2] + G[6]) + w * (G[7] - G[5]) - 2.f * x * (G[4] + G[8]));
  g_q[2] = 2.f * (x * (G[1] + G[3]) + z * (G[5] + G[7]) + w * (G[2] - G[6]) - 2.f * y * (G[0] + G[8]));
  g_q[3] = 2.f * (x * (G[2] + G[6]) + y * (G[5] + G[7]) + w * (G[3] - G[1]) - 2.f * z * (G[0] + G[4]));
  if (!job.normalize) return;
  vf along = g_q[0] * w + g_q[1] * x + g_q[2] * y + g_q[3] * z;
  for (int i = 0; i < 4; i++) g_q[i] = (g_q[i] - along * shape.q[i]) * shape.inverse_norm;
}

template <bool GEO>
static void unproject(const Job& job) {
  const int64_t chunks = (job.N + CHUNK - 1) / CHUNK;
  parallel(job.B * chunks, job.threads, [&](int64_t task) {
    const int64_t scene = task / chunks, N = job.N;
    const int first = (int)(task % chunks) * CHUNK, last = std::min(first + CHUNK, job.N);
    for (int g = first; g < last; g += L) {
      const int lanes = std::min(L, last - g);
      ShapeGrads grads;
      vf q[4] = {};
      Shape shape;
      vi ever = {};
      for (int v = 0; v < job.V; v++) {
        const int64_t view = scene * job.V + v;
        vf G[FLOATS<GEO>] = {};
        vi drawn;
        const bool some = gather<GEO>(job, view, g, lanes, G, drawn);
        if (job.g_shift) store_rows<2>(job.g_shift + 2 * view * N, g, job.N, G);  // G[0], G[1]: by the mean
        if (!some) continue;
        if (!any(ever)) shape.init<GEO>(job, scene, g);
        ever |= drawn;
        Camera camera(job, view);
        unproject_view<GEO>(job, camera, shape, Seen<GEO>(job, camera, shape, &drawn), G, grads);
      }
      if (any(ever)) {
        unshape<GEO>(job, shape, grads, q);
        for (int i = 0; i < 3; i++) grads.mean[i] = keep(ever, grads.mean[i]), grads.scale[i] = keep(ever, grads.scale[i]);
        for (int i = 0; i < 4; i++) q[i] = keep(ever, q[i]);
      }
      store_rows<3>(job.g_means + scene * N * 3, g, job.N, grads.mean);
      store_rows<4>(job.g_quats + scene * N * 4, g, job.N, q);
      store_rows<3>(job.g_scales + scene * N * 3, g, job.N, grads.scale);
      store_rows<1>(job.g_opacities + scene * N, g, job.N, &grads.opacity);
      store_rows<3>(job.g_colors + scene * N * 3, g, job.N, grads.color);
    }
  });
}
