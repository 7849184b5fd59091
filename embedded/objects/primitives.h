// Primitives by signed distance, each in its own frame. Formulas: inigoquilez.com/articles/distfunctions.
#pragma once
#include <algorithm>
#include <cmath>

struct V3 {
  float x, y, z;
};
inline V3 operator+(V3 a, V3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline V3 operator-(V3 a, V3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline V3 operator*(V3 a, float s) { return {a.x * s, a.y * s, a.z * s}; }
inline float dot(V3 a, V3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline float len(V3 a) { return std::sqrt(dot(a, a)); }
inline float clamp(float x, float a, float b) { return std::min(std::max(x, a), b); }

enum Kind { ELLIPSOID, BOX, CONE, TORUS, CAPSULE, DOME, PRISM, PYRAMID, SHELL, STAR, ARC, HEART, DISC };
enum Pattern { PLAIN, BANDS, SECTORS, DOTS };

// One primitive; the layout is that of build.py (ROW).
struct Prim {
  float kind, cut, group, pos[3], rot[9], a[4], round, rgb[3], rgb2[3], pattern, freq, axis, phase;
  float radius, mid[3], half[3], spare[3];  // bounds: about pos, and a box in the own frame
};
static_assert(sizeof(Prim) == 40 * sizeof(float), "Prim must match build.py");

inline V3 turn(const float* r, V3 d) {
  return {r[0] * d.x + r[1] * d.y + r[2] * d.z, r[3] * d.x + r[4] * d.y + r[5] * d.z, r[6] * d.x + r[7] * d.y + r[8] * d.z};
}

inline V3 local(const Prim& p, V3 w) { return turn(p.rot, w - V3{p.pos[0], p.pos[1], p.pos[2]}); }

inline float ellipsoid(V3 p, const float* a) {
  const V3 q{p.x / a[0], p.y / a[1], p.z / a[2]};
  const V3 r{q.x / a[0], q.y / a[1], q.z / a[2]};
  const float k0 = len(q), k1 = len(r);
  return k1 < 1e-6f ? -std::min(a[0], std::min(a[1], a[2])) : k0 * (k0 - 1.f) / k1;
}

inline float extrude(float flat, float z, float half) {
  const float w = std::fabs(z) - half, m = std::max(flat, 0.f), n = std::max(w, 0.f);
  return std::min(std::max(flat, w), 0.f) + std::sqrt(m * m + n * n);
}

inline float box(V3 p, const float* a, float r) {
  const V3 q{std::fabs(p.x) - a[0] + r, std::fabs(p.y) - a[1] + r, std::fabs(p.z) - a[2] + r};
  const V3 m{std::max(q.x, 0.f), std::max(q.y, 0.f), std::max(q.z, 0.f)};
  return len(m) + std::min(std::max(q.x, std::max(q.y, q.z)), 0.f) - r;
}

inline float cone(V3 p, const float* a, float r) {  // half height, bottom and top radius
  const float h = a[0] - r, r1 = std::max(a[1] - r, 0.f), r2 = std::max(a[2] - r, 0.f);
  const float qx = std::sqrt(p.x * p.x + p.z * p.z), qy = p.y, kx = r2 - r1, ky = 2 * h;
  const float ax = qx - std::min(qx, qy < 0 ? r1 : r2), ay = std::fabs(qy) - h;
  const float t = clamp(((r2 - qx) * kx + (h - qy) * ky) / (kx * kx + ky * ky), 0, 1);
  const float bx = qx - r2 + kx * t, by = qy - h + ky * t;
  const float s = (bx < 0 && ay < 0) ? -1.f : 1.f;
  return s * std::sqrt(std::min(ax * ax + ay * ay, bx * bx + by * by)) - r;
}

inline float capsule(V3 p, const float* a) {  // half height, bottom and top radius; a cone with round ends
  const float h = 2 * a[0], b = (a[1] - a[2]) / h, c = std::sqrt(std::max(1 - b * b, 0.f));
  const float qx = std::sqrt(p.x * p.x + p.z * p.z), qy = p.y + a[0], k = -b * qx + c * qy;
  if (k < 0) return std::sqrt(qx * qx + qy * qy) - a[1];
  if (k > c * h) return std::sqrt(qx * qx + (qy - h) * (qy - h)) - a[2];
  return c * qx + b * qy - a[1];
}

inline float star(V3 p, const float* a) {  // outer radius, points, half thickness, inner / outer radius
  const float n = a[1], an = 3.14159265f / n, rin = a[0] * a[3];
  float phi = std::atan2(p.x, p.y), rho = std::sqrt(p.x * p.x + p.y * p.y);
  phi -= 2 * an * std::floor(phi / (2 * an) + .5f);
  const float px = rho * std::cos(phi), py = rho * std::fabs(std::sin(phi));
  const float ex = rin * std::cos(an) - a[0], ey = rin * std::sin(an), wx = px - a[0], wy = py;
  const float t = clamp((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1), dx = wx - ex * t, dy = wy - ey * t;
  const float s = ex * wy - ey * wx < 0 ? 1.f : -1.f;
  return extrude(s * std::sqrt(dx * dx + dy * dy), p.z, a[2]);
}

inline float heart(V3 p, const float* a, float r) {  // size, half thickness
  float x = std::fabs(p.x) / a[0], y = p.y / a[0] + .55f, d;
  if (y + x > 1.f) {
    d = std::sqrt((x - .25f) * (x - .25f) + (y - .75f) * (y - .75f)) - .35355339f;
  } else {
    const float m = .5f * std::max(x + y, 0.f), u = x * x + (y - 1) * (y - 1), v = (x - m) * (x - m) + (y - m) * (y - m);
    d = std::sqrt(std::min(u, v)) * (x > y ? 1.f : -1.f);
  }
  return extrude(d * a[0] + r, p.z, a[1] - r) - r;
}

inline float arc(V3 p, const float* a) {  // ring radius, tube radius, half opening angle about +y in the xy plane
  const float x = std::fabs(p.x), s = std::sin(a[2]), c = std::cos(a[2]);
  const float k = c * x > s * p.y ? x * s + p.y * c : std::sqrt(x * x + p.y * p.y);
  return std::sqrt(std::max(dot(p, p) + a[0] * a[0] - 2 * a[0] * k, 0.f)) - a[1];
}

inline float distance(const Prim& q, V3 p) {
  const float *a = q.a, r = q.round;
  switch (static_cast<int>(q.kind)) {
    case ELLIPSOID: return ellipsoid(p, a);
    case BOX: return box(p, a, r);
    case CONE: return cone(p, a, r);
    case TORUS: {
      const float t = std::sqrt(p.x * p.x + p.z * p.z) - a[0];
      return std::sqrt(t * t + p.y * p.y) - a[1];
    }
    case CAPSULE: return capsule(p, a);
    case DOME: return std::max(ellipsoid(p, a), -p.y);
    case PRISM: {
      const float n = std::sqrt(a[0] * a[0] + a[1] * a[1]), e = (std::fabs(p.x) * a[1] + (p.y - a[1]) * a[0]) / n;
      return std::max(std::max(e, -p.y), std::fabs(p.z) - a[2]);
    }
    case PYRAMID: {
      const float n = std::sqrt(a[0] * a[0] + a[1] * a[1]), m = std::sqrt(a[2] * a[2] + a[1] * a[1]);
      const float e = (std::fabs(p.x) * a[1] + (p.y - a[1]) * a[0]) / n;
      const float f = (std::fabs(p.z) * a[1] + (p.y - a[1]) * a[2]) / m;
      return std::max(std::max(e, f), -p.y);
    }
    case SHELL: return std::max(std::fabs(ellipsoid(p, a)) - a[3], -p.y);
    case STAR: return star(p, a);
    case ARC: return arc(p, a);
    case HEART: return heart(p, a, r);
    case DISC: {  // elliptic cylinder: x radius, half height, z radius
      const float u = p.x / a[0], v = p.z / a[2], k0 = std::sqrt(u * u + v * v);
      const float k1 = std::sqrt(u * u / (a[0] * a[0]) + v * v / (a[2] * a[2]));
      const float flat = k1 < 1e-6f ? -std::min(a[0], a[2]) : k0 * (k0 - 1) / k1;
      return extrude(flat + r, p.y, a[1] - r) - r;
    }
  }
  return 1e9f;
}
