// Wavefront OBJ text to a triangle soup. Plain C ABI; every index is checked, nothing outside the text is read.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace {

const float NONE = std::numeric_limits<float>::quiet_NaN();

struct Corner {
  int64_t v, t, n;  // zero-based; -1 = absent
};

struct Obj {
  std::vector<float> v, t, n;               // as read
  std::vector<float> position, uv, normal;  // soup: 9, 6, 9 floats a triangle; NaN = the file gives none
  std::vector<int32_t> material;            // index into names, -1 before the first usemtl
  std::vector<std::string> names;
};

struct Text {
  const char *p, *end;
  bool blank() const { return *p == ' ' || *p == '\t' || *p == '\r'; }
  void skip() { while (p < end && blank()) p++; }
  bool number(float& out) {
    skip();
    char word[48];
    int k = 0;
    while (p < end && !blank() && *p != '/') {
      if (k < 47) word[k++] = *p;
      p++;
    }
    word[k] = 0;
    char* stop;
    double x = std::strtod(word, &stop);
    out = stop == word || !std::isfinite(x) ? 0.f : float(x);
    return k > 0;
  }
  bool integer(int64_t& out) {
    bool negative = p < end && *p == '-';
    if (negative) p++;
    const char* start = p;
    int64_t x = 0;
    while (p < end && *p >= '0' && *p <= '9') {
      if (x < (int64_t(1) << 40)) x = 10 * x + (*p - '0');
      p++;
    }
    out = negative ? -x : x;
    return p > start;
  }
};

int64_t resolve(int64_t index, int64_t count) {
  int64_t i = index > 0 ? index - 1 : count + index;
  return index == 0 || i < 0 || i >= count ? -1 : i;
}

void emit(Obj& o, const Corner* corners, int a, int b, int c, int32_t material) {
  for (int k : {a, b, c}) {
    const Corner& q = corners[k];
    for (int i = 0; i < 3; i++) o.position.push_back(o.v[3 * q.v + i]);
    for (int i = 0; i < 2; i++) o.uv.push_back(q.t < 0 ? NONE : o.t[2 * q.t + i]);
    for (int i = 0; i < 3; i++) o.normal.push_back(q.n < 0 ? NONE : o.n[3 * q.n + i]);
  }
  o.material.push_back(material);
}

double cross(const double* a, const double* b, const double* c) {
  return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
}

// Ear clipping in the plane of Newell's normal; a fan where the polygon is convex.
void polygon(Obj& o, const std::vector<Corner>& f, int32_t material) {
  const int n = int(f.size());
  double normal[3] = {0, 0, 0};
  for (int k = 0; k < n; k++) {
    const float *p = &o.v[3 * f[k].v], *q = &o.v[3 * f[(k + 1) % n].v];
    for (int i = 0; i < 3; i++) {
      int j = (i + 1) % 3, l = (i + 2) % 3;
      normal[i] += (double(p[j]) - q[j]) * (double(p[l]) + q[l]);
    }
  }
  int axis = 0;
  for (int i = 1; i < 3; i++)
    if (std::fabs(normal[i]) > std::fabs(normal[axis])) axis = i;
  std::vector<double> xy(2 * n);
  double sign = normal[axis] > 0 ? 1 : -1;
  for (int k = 0; k < n; k++) {
    xy[2 * k] = o.v[3 * f[k].v + (axis + 1) % 3];
    xy[2 * k + 1] = sign * o.v[3 * f[k].v + (axis + 2) % 3];
  }
  std::vector<int> left(n);
  bool convex = true;
  for (int k = 0; k < n; k++) {
    left[k] = k;
    convex &= cross(&xy[2 * k], &xy[2 * ((k + 1) % n)], &xy[2 * ((k + 2) % n)]) >= -1e-12;
  }
  const bool too_long = n > 4000;  // clipping is quadratic at best: a hostile file must not hang
  while (left.size() > 3 && !convex && !too_long) {
    const int m = int(left.size());
    int ear = -1;
    for (int k = 0; k < m && ear < 0; k++) {
      const double *a = &xy[2 * left[(k + m - 1) % m]], *b = &xy[2 * left[k]], *c = &xy[2 * left[(k + 1) % m]];
      if (cross(a, b, c) <= 0) continue;
      bool empty = true;
      for (int j = 0; j < m && empty; j++) {
        const double* p = &xy[2 * left[j]];
        if (p == a || p == b || p == c) continue;
        empty = !(cross(a, b, p) > 0 && cross(b, c, p) > 0 && cross(c, a, p) > 0);
      }
      if (empty) ear = k;
    }
    if (ear < 0) break;  // degenerate: the rest becomes a fan
    emit(o, f.data(), left[(ear + m - 1) % m], left[ear], left[(ear + 1) % m], material);
    left.erase(left.begin() + ear);
  }
  for (size_t k = 1; k + 1 < left.size(); k++) emit(o, f.data(), left[0], left[k], left[k + 1], material);
}

void face(Obj& o, Text line) {
  std::vector<Corner> f;
  while (true) {
    line.skip();
    if (line.p >= line.end) break;
    int64_t part[3] = {0, 0, 0};
    for (int k = 0; k < 3; k++) {
      line.integer(part[k]);
      if (line.p >= line.end || *line.p != '/') break;
      line.p++;
    }
    while (line.p < line.end && !line.blank()) line.p++;
    Corner c{resolve(part[0], o.v.size() / 3), resolve(part[1], o.t.size() / 2), resolve(part[2], o.n.size() / 3)};
    if (c.v < 0) return;
    f.push_back(c);
  }
  if (f.size() >= 3) polygon(o, f, int32_t(o.names.size()) - 1);
}

bool starts(const Text& line, const char* word) {
  size_t n = std::strlen(word);
  return size_t(line.end - line.p) > n && !std::memcmp(line.p, word, n) && (line.p[n] == ' ' || line.p[n] == '\t');
}

}  // namespace

extern "C" {

Obj* obj_read(const char* text, int64_t size) {
  Obj* o = new Obj;
  const char *p = text, *end = text + size;
  while (p < end) {
    const char* stop = static_cast<const char*>(std::memchr(p, '\n', end - p));
    if (!stop) stop = end;
    Text line{p, stop};
    line.skip();
    int values = starts(line, "v") || starts(line, "vn") ? 3 : starts(line, "vt") ? 2 : 0;
    if (values) {
      auto& to = line.p[1] == 'n' ? o->n : line.p[1] == 't' ? o->t : o->v;
      line.p += line.p[1] == 'n' || line.p[1] == 't' ? 2 : 1;
      for (int k = 0; k < values; k++) {
        float x = 0;
        line.number(x);
        to.push_back(x);
      }
    } else if (starts(line, "f")) {
      line.p += 1;
      face(*o, line);
    } else if (starts(line, "usemtl")) {
      line.p += 6;
      line.skip();
      while (line.end > line.p && (line.end[-1] == '\r' || line.end[-1] == ' ')) line.end--;
      o->names.emplace_back(line.p, line.end);
    }
    p = stop + 1;
  }
  return o;
}

int64_t obj_triangles(const Obj* o) { return int64_t(o->material.size()); }
int64_t obj_names(const Obj* o) { return int64_t(o->names.size()); }
const char* obj_name(const Obj* o, int64_t k) { return o->names[k].c_str(); }

void obj_copy(const Obj* o, float* position, float* uv, float* normal, int32_t* material) {
  std::memcpy(position, o->position.data(), o->position.size() * 4);
  std::memcpy(uv, o->uv.data(), o->uv.size() * 4);
  std::memcpy(normal, o->normal.data(), o->normal.size() * 4);
  std::memcpy(material, o->material.data(), o->material.size() * 4);
}

void obj_free(Obj* o) { delete o; }

// Normals of a soup. Each corner takes the mean over the triangles at its place that lie within the crease angle of
// its own, weighted by their angles there. `order` lists all corners grouped by place, `start` where groups begin.
void crease_normals(int64_t groups, const int64_t* start, const int64_t* order, const float* flat, const float* angle,
                    float least_cosine, float* normal) {
  for (int64_t g = 0; g < groups; g++) {
    const bool crowded = start[g + 1] - start[g] > 2000;  // quadratic below: a hostile file must not hang
    for (int64_t i = start[g]; i < start[g + 1]; i++) {
      const float* own = flat + 3 * (order[i] / 3);
      double sum[3] = {0, 0, 0};
      for (int64_t j = crowded ? i : start[g]; j < (crowded ? i + 1 : start[g + 1]); j++) {
        const float* n = flat + 3 * (order[j] / 3);
        if (j != i && own[0] * n[0] + own[1] * n[1] + own[2] * n[2] < least_cosine) continue;
        for (int k = 0; k < 3; k++) sum[k] += double(n[k]) * angle[order[j]];
      }
      double length = std::sqrt(sum[0] * sum[0] + sum[1] * sum[1] + sum[2] * sum[2]);
      for (int k = 0; k < 3; k++) normal[3 * order[i] + k] = length > 1e-12 ? float(sum[k] / length) : own[k];
    }
  }
}
}
