// From 3D Gaussians to 2D ones, L at a time, and back. The maths is explained in projection.py, which is the slow twin.
#pragma once
#include "job.h"

constexpr float SCALE_MIN = 1e-8f, DET_MIN = 1e-10f, PLANE_COS_MIN = 1e-7f, TINY = 1e-20f;
constexpr int CHUNK = 512;  // Gaussians per task, a multiple of L

static inline vf dot(const vf* a, const vf* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
static inline vf dot(const float* a, const vf* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
static inline void cross(const vf* a, const vf* b, vf* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}
static inline void add_cross(const vf* a, const vf* b, vf* out) {
  vf c[3];
  cross(a, b, c);
  for (int i = 0; i < 3; i++) out[i] += c[i];
}

// Rows first .. first + L - 1 of an (N, C) array, one vector per column; rows beyond the end repeat the last.
template <int C>
static inline void load_rows(const float* array, int first, int N, vf* out) {
  alignas(64) float buffer[C][L];
  for (int l = 0; l < L; l++) {
    const float* row = array + (int64_t)C * std::min(first + l, N - 1);
    for (int c = 0; c < C; c++) buffer[c][l] = row[c];
  }
  for (int c = 0; c < C; c++) out[c] = load(buffer[c]);
}

template <int C>
static inline void store_rows(float* array, int first, int N, const vf* values) {
  alignas(64) float buffer[C][L];
  for (int c = 0; c < C; c++) store(buffer[c], values[c]);
  for (int l = 0; l < std::min(L, N - first); l++)
    for (int c = 0; c < C; c++) array[(int64_t)C * (first + l) + c] = buffer[c][l];
}

// What does not depend on the camera.
struct Shape {
  vf mean[3], scale[3], opacity;
  vf q[4], inverse_norm;  // as used, and 1 / length (1 for raw quaternions)
  vf R[9], M[9];          // rotation polynomial, R diag(scale)
  vf C[9];                // cofactors of R
  vf weight[3], safe_scale[3];

  template <bool GEO>
  void init(const Job& job, int64_t scene, int first) {
    const int N = job.N;
    load_rows<3>(job.means + scene * N * 3, first, N, mean);
    load_rows<4>(job.quats + scene * N * 4, first, N, q);
    load_rows<3>(job.scales + scene * N * 3, first, N, scale);
    load_rows<1>(job.opacities + scene * N, first, N, &opacity);
    inverse_norm = splat(1.f);
    if (job.normalize) {
      vf norm = root(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
      inverse_norm = 1.f / max(norm, splat(1e-12f));
      for (int i = 0; i < 4; i++) q[i] *= inverse_norm;
    }
    vf w = q[0], x = q[1], y = q[2], z = q[3];
    R[0] = 1.f - 2.f * (y * y + z * z), R[1] = 2.f * (x * y - w * z), R[2] = 2.f * (x * z + w * y);
    R[3] = 2.f * (x * y + w * z), R[4] = 1.f - 2.f * (x * x + z * z), R[5] = 2.f * (y * z - w * x);
    R[6] = 2.f * (x * z - w * y), R[7] = 2.f * (y * z + w * x), R[8] = 1.f - 2.f * (x * x + y * y);
    for (int i = 0; i < 9; i++) M[i] = R[i] * scale[i % 3];
    if (!GEO) return;
    if (job.normalize) {
      for (int i = 0; i < 9; i++) C[i] = R[i];
    } else {
      for (int i = 0; i < 3; i++) cross(R + 3 * ((i + 1) % 3), R + 3 * ((i + 2) % 3), C + 3 * i);
    }
    for (int i = 0; i < 3; i++) safe_scale[i] = max(scale[i], splat(SCALE_MIN));
    vf smallest = min(safe_scale[0], min(safe_scale[1], safe_scale[2]));
    for (int i = 0; i < 3; i++) {
      vf ratio = smallest / safe_scale[i];
      weight[i] = ratio * ratio;
    }
  }
};

// What one camera makes of L Gaussians. Lanes that are not drawn hold harmless numbers.
template <bool GEO>
struct Seen {
  vi drawn;
  vf d[3], z, iz, u, v, uc, vc;
  vf row_x[3], row_y[3], a[3], b[3];      // rows of the projection in world axes, and of projection x M
  vf xx, xy, yy, det0, det, opacity, kept;  // covariance with eps2d; kept: opacity / the Gaussian's own
  vf mean_x, mean_y, conic_xx, conic_xy, conic_yy;
  vf local[3], m[3], m_norm, raw_cos, cos, distance, inverse_ln2, mx, my, slope_x, slope_y;  // m: unit

  // `known`: the lanes that are drawn, where that was decided before; rounding must not decide it anew.
  Seen(const Job& job, const Camera& camera, const Shape& shape, const vi* known = nullptr) {
    for (int i = 0; i < 3; i++) d[i] = shape.mean[i] - camera.centre[i];
    z = dot(camera.R + 6, d);
    drawn = known ? *known : (z > job.near) & (shape.opacity >= job.alpha_min);
    if (!any(drawn)) return;
    z = choose(drawn, z, splat(1.f));
    iz = 1.f / z;
    u = dot(camera.R, d) * iz, v = dot(camera.R + 3, d) * iz;
    uc = min(max(u, splat(camera.u_min)), splat(camera.u_max));
    vc = min(max(v, splat(camera.v_min)), splat(camera.v_max));
    for (int i = 0; i < 3; i++) {
      row_x[i] = (camera.fx * iz) * (camera.R[i] - uc * camera.R[6 + i]);
      row_y[i] = (camera.fy * iz) * (camera.R[3 + i] - vc * camera.R[6 + i]);
    }
    for (int j = 0; j < 3; j++) {
      a[j] = row_x[0] * shape.M[j] + row_x[1] * shape.M[3 + j] + row_x[2] * shape.M[6 + j];
      b[j] = row_y[0] * shape.M[j] + row_y[1] * shape.M[3 + j] + row_y[2] * shape.M[6 + j];
    }
    vf axb[3];
    cross(a, b, axb);
    xx = dot(a, a), xy = dot(a, b), yy = dot(b, b), det0 = dot(axb, axb);  // no cancellation in det0
    det = det0 + job.eps2d * (xx + yy) + job.eps2d * job.eps2d;
    xx += job.eps2d, yy += job.eps2d;
    if (!known) drawn &= det > DET_MIN;
    det = choose(drawn, det, splat(1.f));
    kept = splat(1.f);
    if (job.antialias) {
      kept = keep(det0 > 0.f, root(keep(drawn, det0 / det)));
      if (!known) drawn &= shape.opacity * kept >= job.alpha_min;
    }
    opacity = shape.opacity * kept;
    mean_x = camera.fx * u + camera.cx, mean_y = camera.fy * v + camera.cy;
    vf inverse = 1.f / det;
    conic_xx = yy * inverse, conic_xy = -xy * inverse, conic_yy = xx * inverse;
    if (GEO) plane(camera, shape);
  }

  void plane(const Camera& camera, const Shape& shape) {
    const vf* C = shape.C;
    for (int j = 0; j < 3; j++) local[j] = C[j] * d[0] + C[3 + j] * d[1] + C[6 + j] * d[2];
    vf scaled[3] = {shape.weight[0] * local[0], shape.weight[1] * local[1], shape.weight[2] * local[2]};
    for (int i = 0; i < 3; i++) m[i] = dot(C + 3 * i, scaled);
    m_norm = max(root(dot(m, m)), splat(TINY));
    vf inverse = 1.f / m_norm;
    for (int i = 0; i < 3; i++) m[i] *= inverse;
    raw_cos = dot(m, d) * iz;
    cos = max(raw_cos, splat(PLANE_COS_MIN));
    distance = max(root(dot(d, d)), splat(TINY));
    inverse_ln2 = 1.f / (u * u + v * v + 1.f);
    mx = dot(camera.R, m), my = dot(camera.R + 3, m);
    slope_x = (mx / cos - u * inverse_ln2) * (distance / camera.fx);
    slope_y = (my / cos - v * inverse_ln2) * (distance / camera.fy);
  }
};

// Records, rectangles and tile counts (into offsets) of one chunk of a scene's Gaussians in all its views.
template <bool GEO>
static void project_chunk(const Job& job, int64_t scene, int first, int last) {
  constexpr int F = FLOATS<GEO>;
  const float inverse_min = 1.f / job.alpha_min;
  for (int g = first; g < last; g += L) {
    const int lanes = std::min(L, last - g);
    Shape shape;
    shape.init<GEO>(job, scene, g);
    vf color[3];
    load_rows<3>(job.colors + scene * job.N * 3, g, job.N, color);
    for (int v = 0; v < job.V; v++) {
      const int64_t view = scene * job.V + v, row = view * job.N + g;
      Camera camera(job, view);
      Seen<GEO> s(job, camera, shape);
      if (job.shift && any(s.drawn)) {
        vf by[2];
        load_rows<2>(job.shift + 2 * view * job.N, g, job.N, by);
        s.mean_x += by[0], s.mean_y += by[1];
      }
      for (int l = 0; l < lanes; l++) job.offsets[row + l] = 0, job.rects[row + l] = {0, 0, -1, -1};
      if (!any(s.drawn)) continue;
      // The box where alpha can reach alpha_min. Its edge is never reached, so rounding may go either way on it.
      vf reach2 = 2.f * log_of(keep(s.drawn, s.opacity) * inverse_min + keep(~s.drawn, splat(1.f))) + 1e-4f;
      vf half_x = root(reach2 * s.xx), half_y = root(reach2 * s.yy);
      vf right = min(s.mean_x + half_x - 0.5f, splat(job.W - 1.f)), left = s.mean_x - half_x - 0.5f;
      vf bottom = min(s.mean_y + half_y - 0.5f, splat(job.H - 1.f)), top = s.mean_y - half_y - 0.5f;
      vi drawn = s.drawn & (right >= 0.f) & (bottom >= 0.f) & (left < (float)job.W) & (top < (float)job.H);
      vi x0 = truncate(max(keep(drawn, left) + 1.f, splat(0.f))), x1 = truncate(keep(drawn, right));
      vi y0 = truncate(max(keep(drawn, top) + 1.f, splat(0.f))), y1 = truncate(keep(drawn, bottom));
      drawn &= (x0 <= x1) & (y0 <= y1);
      if (!any(drawn)) continue;
      alignas(64) float out[16][L];
      const vf fields[10] = {s.mean_x,  s.mean_y, s.conic_xx, s.conic_xy, s.conic_yy,
                             s.opacity, reach2,   color[0],   color[1],   color[2]};
      for (int i = 0; i < 10; i++) store(out[i], fields[i]);
      if (GEO) {
        const vf geometry[6] = {-s.m[0], -s.m[1], -s.m[2], s.distance, s.slope_x, s.slope_y};
        for (int i = 0; i < 6; i++) store(out[10 + i], geometry[i]);
      }
      for (int l = 0; l < lanes; l++) {
        if (!drawn[l]) continue;
        Rect rect = {(int16_t)x0[l], (int16_t)y0[l], (int16_t)x1[l], (int16_t)y1[l]};
        job.rects[row + l] = rect;
        job.offsets[row + l] = rect.tiles();
        job.z[row + l] = s.z[l];
        float* record = job.records + F * (row + l);
        for (int i = 0; i < (GEO ? 16 : 10); i++) record[i] = out[i][l];
      }
    }
  }
}

// The number of (tile, Gaussian) pairs of all views, or -1 if one view has more than 32 bits can count.
template <bool GEO>
static int64_t project(const Job& job) {
  const int64_t chunks = (job.N + CHUNK - 1) / CHUNK, views = (int64_t)job.B * job.V;
  parallel(job.B * chunks, job.threads, [&](int64_t task) {
    const int first = (int)(task % chunks) * CHUNK;
    project_chunk<GEO>(job, task / chunks, first, std::min(first + CHUNK, job.N));
  });
  parallel(views, job.threads, [&](int64_t view) {
    int64_t sum = 0;
    int32_t* counts = job.offsets + view * job.N;
    for (int g = 0; g < job.N; g++) {
      const int32_t count = counts[g];
      counts[g] = (int32_t)sum;
      sum += count;
    }
    job.base[view + 1] = sum;
  });
  job.base[0] = 0;
  bool fits = true;
  for (int64_t view = 0; view < views; view++) {
    fits &= job.base[view + 1] <= INT32_MAX;
    job.base[view + 1] += job.base[view];
  }
  return fits ? job.base[views] : -1;
}
