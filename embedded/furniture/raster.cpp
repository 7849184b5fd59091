// Z-buffer rasteriser of textured triangle soups with a fixed baked light. One thread, plain C ABI.
// Two-sided triangles, perspective-correct textures with a mip level each, alpha test, ss x ss samples a pixel.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

const int LEVELS = 9;

struct Vec {
  float x, y, z;
};
Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
Vec operator*(Vec a, float s) { return {a.x * s, a.y * s, a.z * s}; }
float dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
Vec cross(Vec a, Vec b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
Vec unit(Vec a) { return a * (1.f / std::sqrt(std::max(dot(a, a), 1e-30f))); }
Vec load(const float* p) { return {p[0], p[1], p[2]}; }

}  // namespace

extern "C" {

struct Mesh {
  int64_t triangles;
  const float *position, *normal, *uv;  // (T, 3, 3), (T, 3, 3), (T, 3, 2)
  const int32_t* material;              // (T,)
  const float* factor;                  // (M, 3): colour, or what the texture is multiplied with
  const int32_t* texture;               // (M,), -1 = none
  const uint8_t* cutout;                // (M,), alpha-tested
  const uint8_t* texels;                // (N, 4)
  const int32_t* levels;                // (K, 1 + 3 * LEVELS): count, then offset, width, height of each level
};

struct Camera {
  float c2w[12];           // rows of the upper 3 x 4, OpenCV axes
  float focal, centre;     // pixels of the image
  int32_t width, samples;  // image side; samples a side of a pixel
  int32_t canonical;       // 1: colour is the mean of the hit samples, mask is 0 or 255; 0: on white, mask is coverage
  int32_t least;           // canonical: hit samples that make a pixel whose centre misses count as hit
};

struct Occlusion {
  int32_t directions, size;  // 0 directions = none
  const float* axes;         // (D, 3, 3): right, up, towards the open sky
  float* height;             // (D, size, size): largest coordinate towards the sky over [-0.5, 0.5]^2
};
}

namespace {

struct Hit {
  int32_t triangle = -1;
  float a = 0, b = 0, inverse_z = 0;  // weights of corners 1 and 2 in the object; 1 / camera z
};

int level_of(const Mesh& m, int64_t t, int tex, float area) {
  const float* uv = m.uv + 6 * t;
  const int32_t* l = m.levels + tex * (1 + 3 * LEVELS);
  float du = std::fabs((uv[2] - uv[0]) * (uv[5] - uv[1]) - (uv[4] - uv[0]) * (uv[3] - uv[1]));
  float q = du * float(l[2]) * float(l[3]) / std::max(area, 1e-12f);
  int level = q > 1 ? int(0.5f * std::log2(q) + 0.3f) : 0;
  return std::min(std::max(level, 0), l[0] - 1);
}

const uint8_t* texel(const Mesh& m, int64_t t, int tex, int level, float a, float b) {
  const float* uv = m.uv + 6 * t;
  float u = uv[0] + a * (uv[2] - uv[0]) + b * (uv[4] - uv[0]), v = uv[1] + a * (uv[3] - uv[1]) + b * (uv[5] - uv[1]);
  const int32_t* l = m.levels + tex * (1 + 3 * LEVELS) + 1 + 3 * level;
  int x = std::min(int((u - std::floor(u)) * float(l[1])), l[1] - 1);
  int y = std::min(int((1.f - (v - std::floor(v))) * float(l[2])), l[2] - 1);
  return m.texels + 4 * (int64_t(l[0]) + int64_t(y) * l[1] + x);
}

struct Screen {
  int size;
  float focal, centre;
  std::vector<Hit> hits;
  std::vector<float> nearest;  // 1 / z, a little larger for front faces: coincident sheets show their front
};

void rasterise(const Mesh& m, const Camera& c, Screen& s) {
  s.hits.assign(size_t(s.size) * s.size, Hit());
  s.nearest.assign(size_t(s.size) * s.size, 0.f);
  const float* q = c.c2w;
  for (int64_t t = 0; t < m.triangles; t++) {
    float X[3], Y[3], W[3];
    bool behind = false;
    for (int k = 0; k < 3; k++) {
      Vec p = load(m.position + 9 * t + 3 * k) - Vec{q[3], q[7], q[11]};
      float z = p.x * q[2] + p.y * q[6] + p.z * q[10];
      behind |= !(z > 1e-3f);  // also true for NaN
      W[k] = 1.f / z;
      X[k] = s.focal * (p.x * q[0] + p.y * q[4] + p.z * q[8]) * W[k] + s.centre;
      Y[k] = s.focal * (p.x * q[1] + p.y * q[5] + p.z * q[9]) * W[k] + s.centre;
    }
    if (behind) continue;
    int x0 = std::max(0, int(std::ceil(std::min({X[0], X[1], X[2]}) - .5f)));
    int x1 = std::min(s.size - 1, int(std::floor(std::max({X[0], X[1], X[2]}) - .5f)));
    int y0 = std::max(0, int(std::ceil(std::min({Y[0], Y[1], Y[2]}) - .5f)));
    int y1 = std::min(s.size - 1, int(std::floor(std::max({Y[0], Y[1], Y[2]}) - .5f)));
    if (x0 > x1 || y0 > y1) continue;
    float area = (X[1] - X[0]) * (Y[2] - Y[0]) - (X[2] - X[0]) * (Y[1] - Y[0]);
    if (std::fabs(area) < 1e-9f) continue;
    const float inverse = 1.f / area, favour = area < 0 ? 1.00001f : 1.f;  // y is down: fronts have area < 0
    const int tex = m.cutout[m.material[t]] ? m.texture[m.material[t]] : -1;
    const int level = tex < 0 ? 0 : level_of(m, t, tex, std::fabs(area));
    for (int y = y0; y <= y1; y++)
      for (int x = x0; x <= x1; x++) {
        float fx = float(x) + .5f, fy = float(y) + .5f;
        float b1 = ((fx - X[0]) * (Y[2] - Y[0]) - (X[2] - X[0]) * (fy - Y[0])) * inverse;
        float b2 = ((X[1] - X[0]) * (fy - Y[0]) - (fx - X[0]) * (Y[1] - Y[0])) * inverse, b0 = 1.f - b1 - b2;
        if (b0 < -1e-6f || b1 < -1e-6f || b2 < -1e-6f) continue;
        float iz = b0 * W[0] + b1 * W[1] + b2 * W[2];
        size_t at = size_t(y) * s.size + x;
        if (iz * favour <= s.nearest[at]) continue;
        float a = b1 * W[1] / iz, b = b2 * W[2] / iz;
        if (tex >= 0 && texel(m, t, tex, level, a, b)[3] < 100) continue;
        s.nearest[at] = iz * favour;
        s.hits[at] = {int32_t(t), a, b, iz};
      }
  }
}

// How open the surroundings of a point are, in [0, 1]: blockers count fully when near, not at all beyond `range`.
float openness(const Occlusion& o, Vec p, Vec n) {
  const float range = 0.30f, bias = 0.010f;
  p = p + n * 0.012f;
  float open = 0, all = 0;
  for (int d = 0; d < o.directions; d++) {
    const float* axes = o.axes + 9 * d;
    Vec sky = load(axes + 6);
    float weight = dot(sky, n);
    if (weight < 0.1f) continue;
    int x = std::clamp(int((dot(load(axes), p) + .5f) * float(o.size)), 0, o.size - 1);
    int y = std::clamp(int((dot(load(axes + 3), p) + .5f) * float(o.size)), 0, o.size - 1);
    float over = o.height[(size_t(d) * o.size + y) * o.size + x] - dot(sky, p) - bias;
    all += weight;
    open += weight * (over <= 0 ? 1.f : std::min(1.f, over / range));
  }
  return all > 0 ? open / all : 1.f;
}

struct Shaded {
  Vec colour, normal;
};

Shaded shade(const Mesh& m, const Camera& c, const Occlusion& o, const Hit& h, float pixel_area) {
  const float *P = m.position + 9 * int64_t(h.triangle), *N = m.normal + 9 * int64_t(h.triangle);
  Vec p0 = load(P), e1 = load(P + 3) - p0, e2 = load(P + 6) - p0, p = p0 + e1 * h.a + e2 * h.b;
  Vec view = unit(Vec{c.c2w[3], c.c2w[7], c.c2w[11]} - p), flat = unit(cross(e1, e2));
  if (dot(flat, view) < 0) flat = flat * -1.f;
  Vec n = load(N) * (1.f - h.a - h.b) + load(N + 3) * h.a + load(N + 6) * h.b;
  n = dot(n, n) < 1e-12f ? flat : unit(n);
  if (dot(n, flat) < 0) n = n * -1.f;
  if (dot(n, flat) < .25f) n = flat;                             // broken vertex normals: trust the geometry
  float away = dot(n, view);
  if (away < 1e-3f) n = unit(n + view * (1e-3f - away) );          // turned away: bend to the silhouette
  const int k = m.material[h.triangle], tex = m.texture[k];
  Vec colour = load(m.factor + 3 * k);
  if (tex >= 0) {
    // screen area of the triangle, for the mip level: projected area over depth squared
    float z = 1.f / h.inverse_z, facing = std::fabs(dot(unit(cross(e1, e2)), view));
    Vec w = cross(e1, e2);
    float area = std::sqrt(dot(w, w)) * facing / (z * z) * pixel_area;
    const uint8_t* q = texel(m, h.triangle, tex, level_of(m, h.triangle, tex, area), h.a, h.b);
    colour = {colour.x * float(q[0]) / 255.f, colour.y * float(q[1]) / 255.f, colour.z * float(q[2]) / 255.f};
  }
  float light = .64f + .17f * n.y + .28f * std::max(0.f, .34f * n.x + .84f * n.y + .42f * n.z);
  if (o.directions) light *= .60f + .40f * openness(o, p, n);
  auto tone = [&](float v) { return std::min(1.f, std::min(1.f, v) * light); };
  return {{tone(colour.x), tone(colour.y), tone(colour.z)}, n};
}

}  // namespace

extern "C" {

// Heights of the mesh towards each direction, for `openness`. Cut-out triangles (leaves) cast nothing.
void occlusion_heights(const Mesh* m, const Occlusion* o) {
  const int S = o->size;
  std::fill(o->height, o->height + size_t(o->directions) * S * S, -9.f);
  for (int d = 0; d < o->directions; d++) {
    const float* axes = o->axes + 9 * d;
    float* map = o->height + size_t(d) * S * S;
    for (int64_t t = 0; t < m->triangles; t++) {
      if (m->cutout[m->material[t]]) continue;
      float X[3], Y[3], H[3];
      for (int k = 0; k < 3; k++) {
        Vec p = load(m->position + 9 * t + 3 * k);
        X[k] = (dot(load(axes), p) + .5f) * float(S);
        Y[k] = (dot(load(axes + 3), p) + .5f) * float(S);
        H[k] = dot(load(axes + 6), p);
      }
      int x0 = std::max(0, int(std::ceil(std::min({X[0], X[1], X[2]}) - .5f)));
      int x1 = std::min(S - 1, int(std::floor(std::max({X[0], X[1], X[2]}) - .5f)));
      int y0 = std::max(0, int(std::ceil(std::min({Y[0], Y[1], Y[2]}) - .5f)));
      int y1 = std::min(S - 1, int(std::floor(std::max({Y[0], Y[1], Y[2]}) - .5f)));
      float area = (X[1] - X[0]) * (Y[2] - Y[0]) - (X[2] - X[0]) * (Y[1] - Y[0]);
      if (!(std::fabs(area) > 1e-9f)) continue;
      for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++) {
          float fx = float(x) + .5f, fy = float(y) + .5f;
          float b1 = ((fx - X[0]) * (Y[2] - Y[0]) - (X[2] - X[0]) * (fy - Y[0])) / area;
          float b2 = ((X[1] - X[0]) * (fy - Y[0]) - (fx - X[0]) * (Y[1] - Y[0])) / area;
          if (b1 < 0 || b2 < 0 || b1 + b2 > 1) continue;
          float& to = map[size_t(y) * S + x];
          to = std::max(to, H[0] + b1 * (H[1] - H[0]) + b2 * (H[2] - H[0]));
        }
    }
  }
}

// One view. rgb (W, W, 3), mask (W, W); canonical views also depth (W, W: camera z, 0 = nothing), normal (W, W, 3:
// world frame times 127, or camera frame: see below) and ids (W, W: the triangle, -1 = nothing).
void render_view(const Mesh* m, const Camera* c, const Occlusion* o, uint8_t* rgb, uint8_t* mask, float* depth,
                 int8_t* normal, int32_t* ids) {
  const int W = c->width, ss = c->samples;
  Screen fine{W * ss, c->focal * float(ss), c->centre * float(ss), {}, {}};
  Screen mid{W, c->focal, c->centre, {}, {}};
  rasterise(*m, *c, fine);
  if (c->canonical) rasterise(*m, *c, mid);
  const float fine_area = fine.focal * fine.focal, mid_area = mid.focal * mid.focal;
  for (int y = 0; y < W; y++)
    for (int x = 0; x < W; x++) {
      const size_t at = size_t(y) * W + x;
      Vec sum{0, 0, 0};
      Hit near;
      float best = 1e9f;
      int hit = 0;
      for (int j = 0; j < ss * ss; j++) {
        const Hit& h = fine.hits[size_t(y * ss + j / ss) * fine.size + x * ss + j % ss];
        if (h.triangle < 0) continue;
        sum = sum + shade(*m, *c, *o, h, fine_area).colour;
        hit++;
        float dx = float(j % ss) + .5f - .5f * float(ss), dy = float(j / ss) + .5f - .5f * float(ss);
        if (dx * dx + dy * dy < best) best = dx * dx + dy * dy, near = h;
      }
      uint8_t* out = rgb + 3 * at;
      if (!c->canonical) {
        float n = float(ss * ss), white = n - float(hit);
        mask[at] = uint8_t(255.f * float(hit) / n + .5f);
        for (int k = 0; k < 3; k++) out[k] = uint8_t(255.f * ((&sum.x)[k] + white) / n + .5f);
        continue;
      }
      const Hit& centre = mid.hits[at];
      const bool covered = hit > 0 && (centre.triangle >= 0 || hit >= c->least);
      mask[at] = covered ? 255 : 0;
      depth[at] = 0;
      ids[at] = -1;
      for (int k = 0; k < 3; k++) out[k] = 255, normal[3 * at + k] = 0;
      if (!covered) continue;
      const Hit& h = centre.triangle >= 0 ? centre : near;
      Vec n = shade(*m, *c, *o, h, mid_area).normal;
      const float* q = c->c2w;
      float frame[3] = {n.x * q[0] + n.y * q[4] + n.z * q[8], n.x * q[1] + n.y * q[5] + n.z * q[9],
                        n.x * q[2] + n.y * q[6] + n.z * q[10]};
      depth[at] = 1.f / h.inverse_z;
      ids[at] = h.triangle;
      for (int k = 0; k < 3; k++) {
        out[k] = uint8_t(255.f * (&sum.x)[k] / float(hit) + .5f);
        normal[3 * at + k] = int8_t(std::lrint(127.f * frame[k]));
      }
    }
}
}
