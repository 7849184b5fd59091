// Sphere tracing of primitive lists: colour, coverage, depth and normals of whole objects. Plain C ABI, no state.
//
// A ray is straight in the object's own frame too, so an object may be stretched along its axes without touching its
// primitives: the march steps by distance / |direction in that frame|.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "primitives.h"

namespace {

struct Field {  // the primitives that matter for a ray, in order of groups: solids, then what is cut from them
  const Prim* list[256];
  int n = 0;

  float at(V3 w, const Prim** own = nullptr) const {
    float best = 1e9f;
    const Prim* winner = nullptr;
    for (int i = 0; i < n;) {
      const float group = list[i]->group;
      float d = 1e9f;
      const Prim* o = nullptr;
      for (; i < n && list[i]->group == group; ++i) {
        const Prim& p = *list[i];
        if (p.cut == 0) {
          const V3 c{w.x - p.pos[0], w.y - p.pos[1], w.z - p.pos[2]};
          const float reach = std::min(d, best) + p.radius;
          if (reach <= 0 || dot(c, c) >= reach * reach) continue;
          const float x = distance(p, local(p, w));
          if (x < d) d = x, o = &p;
        } else if (d < best) {
          const float x = -distance(p, local(p, w));
          if (x > d) d = x, o = &p;
        }
      }
      if (d < best) best = d, winner = o;
    }
    if (own) *own = winner;
    return best;
  }
};

struct Frame {  // object = a * world + b
  float a[9];
  V3 b;
  V3 in(V3 p) const { return turn(a, p) + b; }
  V3 out(V3 p) const {  // rows of a are orthogonal
    const V3 d = p - b;
    const float q[3] = {d.x, d.y, d.z};
    V3 w{0, 0, 0};
    for (int k = 0; k < 3; ++k) {
      const V3 row{a[3 * k], a[3 * k + 1], a[3 * k + 2]};
      w = w + row * (q[k] / dot(row, row));
    }
    return w;
  }
  V3 dir(V3 d) const { return turn(a, d); }
  V3 normal(V3 n) const {
    return {a[0] * n.x + a[3] * n.y + a[6] * n.z, a[1] * n.x + a[4] * n.y + a[7] * n.z, a[2] * n.x + a[5] * n.y + a[8] * n.z};
  }
};

// Near and far ray parameters of a primitive's box; false where the ray misses it.
bool bounds(const Prim& p, V3 o, V3 d, float inv, float pad, float* near, float* far) {
  const V3 oc{o.x - p.pos[0], o.y - p.pos[1], o.z - p.pos[2]};
  const float r = p.radius + pad, b = dot(oc, d) * inv * inv, c = (dot(oc, oc) - r * r) * inv * inv;
  if (b * b <= c) return false;
  const V3 lo = local(p, o), ld = turn(p.rot, d);
  const float os[3] = {lo.x - p.mid[0], lo.y - p.mid[1], lo.z - p.mid[2]}, ds[3] = {ld.x, ld.y, ld.z};
  float t0 = 0, t1 = 1e9f;
  for (int k = 0; k < 3; ++k) {
    const float h = p.half[k] + pad;
    if (std::fabs(ds[k]) < 1e-9f) {
      if (std::fabs(os[k]) > h) return false;
      continue;
    }
    const float s = 1 / ds[k], u = (-os[k] - std::copysign(h, ds[k])) * s, v = (-os[k] + std::copysign(h, ds[k])) * s;
    t0 = std::max(t0, u), t1 = std::min(t1, v);
  }
  *near = t0, *far = t1;
  return t0 < t1;
}

bool dotted(const Prim& p, V3 l, V3 n) {
  const float step = 1 / p.freq, reach = .3f * step;
  const int kind = static_cast<int>(p.kind);
  if (kind == BOX || kind == PRISM || kind == HEART) {  // a square lattice on every face
    const V3 f{std::fabs(n.x), std::fabs(n.y), std::fabs(n.z)};
    float u = l.x, v = l.y;
    if (f.x >= f.y && f.x >= f.z) u = l.z;
    else if (f.y >= f.z) v = l.z;
    u = (u / step - std::floor(u / step) - .5f) * step, v = (v / step - std::floor(v / step) - .5f) * step;
    return u * u + v * v < reach * reach;
  }
  const bool ball = kind == ELLIPSOID || kind == DOME || kind == SHELL;  // rings of dots, as many as fit on each ring
  const float rho = std::sqrt(l.x * l.x + l.z * l.z), mean = std::sqrt(p.a[0] * std::max(p.a[1], 1e-6f));
  const float v = ball ? std::asin(clamp(l.y / p.a[1], -1, 1)) * mean : l.y, j = std::floor(v / step), mid = (j + .5f) * step;
  const float ring = ball ? p.a[0] * std::cos(mid / mean) : kind == CONE ? std::max(p.a[1], p.a[2]) : rho;
  const float count = std::max(1.f, std::floor(6.2831853f * ring / step));
  float u = std::atan2(l.z, l.x) / 6.2831853f * count + .5f * std::fmod(std::fabs(j), 2.f);
  u = (u - std::floor(u) - .5f) * 6.2831853f * rho / count;
  return u * u + (v - mid) * (v - mid) < reach * reach;
}

const float* colour(const Prim& p, V3 w, V3 n) {
  const V3 l = local(p, w);
  switch (static_cast<int>(p.pattern)) {
    case BANDS: {
      const float s = p.axis < .5f ? w.x : p.axis < 1.5f ? w.y : w.z;
      return static_cast<int>(std::floor(s * p.freq + p.phase)) & 1 ? p.rgb2 : p.rgb;
    }
    case SECTORS: {
      const float s = (std::atan2(l.z, l.x) / 6.2831853f + 1.f) * p.freq + p.phase;
      return s - std::floor(s) > .5f ? p.rgb2 : p.rgb;
    }
    case DOTS: return dotted(p, l, turn(p.rot, n)) ? p.rgb2 : p.rgb;
  }
  return p.rgb;
}

struct Hit {
  const Prim* prim = nullptr;
  float t = 0, open = 1;  // open: ambient light left by occlusion
  V3 n{0, 0, 0};          // world
  float rgb[3] = {1, 1, 1};
};

struct Lens {
  const float* c;  // camera to world, 3 x 4, OpenCV axes
  float focal, width, shift;
  V3 ray(float x, float y) const {
    const float u = ((x + shift) / width - .5f) / focal, v = ((y + shift) / width - .5f) / focal;
    const V3 d{c[0] * u + c[1] * v + c[2], c[4] * u + c[5] * v + c[6], c[8] * u + c[9] * v + c[10]};
    return d * (1 / len(d));
  }
  // Pixel coordinates of a world point in front of the camera.
  void project(V3 w, float* x, float* y) const {
    const V3 d{w.x - c[3], w.y - c[7], w.z - c[11]};
    const float z = c[2] * d.x + c[6] * d.y + c[10] * d.z;
    *x = ((c[0] * d.x + c[4] * d.y + c[8] * d.z) / z * focal + .5f) * width - shift;
    *y = ((c[1] * d.x + c[5] * d.y + c[9] * d.z) / z * focal + .5f) * width - shift;
  }
};

struct Object {
  Field all;
  Frame frame;
  float unit;  // object lengths per world length
};

const int TILE = 8;

// The primitives that a square of pixels may see, by the projected corners of their boxes; cuts follow their solids.
struct Tiles {
  std::vector<Field> list;
  int side;
  Tiles(const Object& obj, const Lens& lens, int size) : list(((size + TILE - 1) / TILE) * ((size + TILE - 1) / TILE)) {
    side = (size + TILE - 1) / TILE;
    int x0 = 0, x1 = -1, y0 = 0, y1 = -1;
    for (int i = 0; i < obj.all.n; ++i) {
      const Prim& p = *obj.all.list[i];
      if (p.cut == 0) {
        float lo[2] = {1e9f, 1e9f}, hi[2] = {-1e9f, -1e9f};
        for (int k = 0; k < 8; ++k) {
          const float l[3] = {p.mid[0] + (k & 1 ? 1 : -1) * p.half[0], p.mid[1] + (k & 2 ? 1 : -1) * p.half[1],
                              p.mid[2] + (k & 4 ? 1 : -1) * p.half[2]};
          const float* r = p.rot;
          const V3 w{p.pos[0] + r[0] * l[0] + r[3] * l[1] + r[6] * l[2], p.pos[1] + r[1] * l[0] + r[4] * l[1] + r[7] * l[2],
                     p.pos[2] + r[2] * l[0] + r[5] * l[1] + r[8] * l[2]};
          float q[2];
          lens.project(obj.frame.out(w), q, q + 1);
          for (int j = 0; j < 2; ++j) lo[j] = std::min(lo[j], q[j]), hi[j] = std::max(hi[j], q[j]);
        }
        x0 = std::max(0, int(std::floor((lo[0] - 1.5f) / TILE))), x1 = std::min(side - 1, int((hi[0] + 1.5f) / TILE));
        y0 = std::max(0, int(std::floor((lo[1] - 1.5f) / TILE))), y1 = std::min(side - 1, int((hi[1] + 1.5f) / TILE));
      }
      for (int y = y0; y <= y1; ++y)
        for (int x = x0; x <= x1; ++x) {
          Field& f = list[y * side + x];
          f.list[f.n++] = &p;
        }
    }
  }
  const Field& at(int x, int y) const { return list[(y / TILE) * side + x / TILE]; }
};

// The first hit of a ray from `origin` along the unit vector `dir`, among the primitives `seen`. Where `like` is a hit close
// by, on the same primitive and facing the same way, its ambient occlusion is taken over.
Hit trace(const Object& obj, const Field& seen, V3 origin, V3 dir, const Hit* like = nullptr) {
  const V3 light{0.34f, 0.84f, 0.42f};
  const V3 o = obj.frame.in(origin), d = obj.frame.dir(dir);
  const float inv = 1 / len(d), eps = 1.0e-3f * obj.unit;
  Field near;
  float t = 1e9f, end = 0, group = -1;
  for (int i = 0; i < seen.n; ++i) {
    const Prim* p = seen.list[i];
    float t0, t1;
    if (p->cut != 0) {
      if (p->group == group) near.list[near.n++] = p;
    } else if (bounds(*p, o, d, inv, 2 * eps, &t0, &t1)) {
      near.list[near.n++] = p, group = p->group, t = std::min(t, t0), end = std::max(end, t1);
    }
  }
  Hit hit;
  const Prim* own = nullptr;
  bool found = false;
  for (int step = 0; step < 96 && t < end; ++step) {
    const float q = near.at(o + d * t, &own);
    if ((found = q < eps && own)) {
      t += q * inv;
      break;
    }
    t += q * .95f * inv;
  }
  if (!found) return hit;
  const V3 p = o + d * t;
  const float e = 1.2f * eps;
  const float s0 = distance(*own, local(*own, p + V3{e, -e, -e})), s1 = distance(*own, local(*own, p + V3{-e, -e, e}));
  const float s2 = distance(*own, local(*own, p + V3{-e, e, -e})), s3 = distance(*own, local(*own, p + V3{e, e, e}));
  V3 n{s0 - s1 - s2 + s3, -s0 - s1 + s2 + s3, -s0 + s1 - s2 + s3};
  const float nl = len(n);
  n = nl > 1e-12f ? n * (1 / nl) : d * -inv;
  if (dot(n, d) > 0) n = n * -1.f;  // the inside of what was cut away
  V3 w = obj.frame.normal(n);
  w = w * (1 / len(w));
  if (like && like->prim == own && dot(like->n, w) > .8f) {
    hit.open = like->open;
  } else {
    float occlusion = 0, weight = 1;
    for (int i = 1; i <= 3; ++i, weight *= .55f) {
      const float h = .025f * obj.unit * i;
      occlusion += (h - obj.all.at(p + n * h)) * weight;
    }
    hit.open = clamp(1 - 3.2f * occlusion / obj.unit, .55f, 1);
  }
  const float shade = (.64f + .17f * w.y + .28f * std::max(0.f, dot(w, light))) * hit.open;
  const float* c = colour(*own, p, n);
  for (int k = 0; k < 3; ++k) hit.rgb[k] = clamp(c[k] * shade, 0, 1);
  hit.prim = own, hit.t = t, hit.n = w;
  return hit;
}

bool differ(const Hit& a, const Hit& b) {
  if (a.prim != b.prim) return true;
  if (!a.prim) return false;
  float gap = 0;
  for (int k = 0; k < 3; ++k) gap = std::max(gap, std::fabs(a.rgb[k] - b.rgb[k]));
  return gap > .06f || dot(a.n, b.n) < .8f;
}

uint8_t byte(float x) { return static_cast<uint8_t>(clamp(x * 255 + .5f, 0, 255)); }

// Colour and coverage of a pixel from 3 x 3 samples in it, of which the middle one is known; canonical views, which need no
// coverage, take the corners only.
void supersample(const Object& obj, const Field& seen, const Lens& lens, V3 eye, int x, int y, const Hit& middle,
                 bool composite, uint8_t* rgb, uint8_t* mask) {
  float sum[3] = {0, 0, 0};
  int hits = 0, total = 0;
  for (int k = 0; k < 9; ++k) {
    if (!composite && k % 2 == 1) continue;
    const Hit h = k == 4 ? middle : trace(obj, seen, eye, lens.ray(x + (k % 3 - 1) / 3.f, y + (k / 3 - 1) / 3.f), &middle);
    ++total;
    if (!h.prim) continue;
    ++hits;
    for (int c = 0; c < 3; ++c) sum[c] += h.rgb[c];
  }
  if (!composite) total = hits;
  for (int c = 0; c < 3; ++c) rgb[c] = byte((sum[c] + (total - hits)) / total);
  if (composite) *mask = byte(hits / float(total));
}

void view(const Object& obj, const float* cam, bool canonical, float focal, int size, uint8_t* rgb, uint8_t* mask,
          float* depth, int8_t* normal) {
  const Lens lens{cam, focal, canonical ? size - 1.f : size, canonical ? 0.f : .5f};
  const V3 eye{cam[3], cam[7], cam[11]}, ahead{cam[2], cam[6], cam[10]};
  const Tiles tiles(obj, lens, size);
  std::vector<Hit> hits(size * size);
  for (int i = 0; i < size * size; ++i) {
    const Field& seen = tiles.at(i % size, i / size);
    if (seen.n) hits[i] = trace(obj, seen, eye, lens.ray(i % size, i / size));
  }
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) {
      const int i = y * size + x;
      const Hit& h = hits[i];
      bool edge = false;
      for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
          const int nx = x + dx, ny = y + dy;
          if (nx >= 0 && ny >= 0 && nx < size && ny < size) edge = edge || differ(h, hits[ny * size + nx]);
        }
      mask[i] = h.prim ? 255 : 0;
      for (int k = 0; k < 3; ++k) rgb[3 * i + k] = byte(h.rgb[k]);
      if (edge && (h.prim || !canonical)) 
        supersample(obj, tiles.at(x, y), lens, eye, x, y, h, !canonical, rgb + 3 * i, mask + i);
      if (!canonical || !h.prim) continue;
      depth[i] = h.t * dot(lens.ray(x, y), ahead);
      const float* c = cam;
      float n[3];
      for (int k = 0; k < 3; ++k) n[k] = c[k] * h.n.x + c[4 + k] * h.n.y + c[8 + k] * h.n.z;
      n[2] = std::min(n[2], -.03f);  // off the axis, a visible surface may lean away from the camera's plane by a hair
      const float s = 127 / std::sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
      for (int k = 0; k < 3; ++k) normal[3 * i + k] = static_cast<int8_t>(std::lrint(n[k] * s));
    }
}

}  // namespace

// Renders `views` views of each object, the first `canonical` of them with depth and normals and end points on the pixels.
// offsets (count + 1) cut the rows of prims into objects; frames (count, 12): world to object, rotation then shift;
// cams (count, views, 12). depth and normal must come zeroed, (count, canonical, ...). Returns 0, or 1 for a too long list.
extern "C" int march(int count, const int32_t* offsets, const float* prims, const float* frames, int views, int canonical,
                     const float* cams, float focal, int size, uint8_t* rgb, uint8_t* mask, float* depth, int8_t* normal,
                     int threads) {
  for (int o = 0; o < count; ++o)
    if (offsets[o + 1] - offsets[o] > 256) return 1;
  const int64_t area = int64_t(size) * size;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int o = 0; o < count; ++o) {
    Object obj;
    for (int i = offsets[o]; i < offsets[o + 1]; ++i) obj.all.list[obj.all.n++] = reinterpret_cast<const Prim*>(prims) + i;
    const float* f = frames + 12 * o;
    std::copy(f, f + 9, obj.frame.a);
    obj.frame.b = {f[9], f[10], f[11]};
    obj.unit = std::sqrt(f[3] * f[3] + f[4] * f[4] + f[5] * f[5]);
    for (int v = 0; v < views; ++v) {
      const int64_t at = (int64_t(o) * views + v) * area, at4 = (int64_t(o) * canonical + v) * area;
      const bool exact = v < canonical;
      view(obj, cams + (int64_t(o) * views + v) * 12, exact, focal, size, rgb + 3 * at, mask + at,
           exact ? depth + at4 : nullptr, exact ? normal + 3 * at4 : nullptr);
    }
  }
  return 0;
}
