// Depth order, tile lists, and the layout of pixels inside a tile.
#pragma once
#include <vector>

#include "job.h"

// A tile is stored as blocks of L pixels, BLOCK_W wide: small splats fill a square block better than a row of L.
constexpr int BLOCK_W = 4, BLOCK_H = L / BLOCK_W;
constexpr int BLOCKS_X = TILE_W / BLOCK_W, BLOCKS_Y = TILE_H / BLOCK_H;

struct Lanes {
  vf x, y;  // pixel centres relative to the block's corner
  Lanes() {
    for (int i = 0; i < L; i++) x[i] = i % BLOCK_W + 0.5f, y[i] = i / BLOCK_W + 0.5f;
  }
};

struct Tile {
  int64_t view, index;  // index: among all tiles of all views
  int x, y, begin, end;  // corner in pixels; begin, end: its list, within the view's ids

  Tile(const Job& job, int64_t task) : view(task / job.tiles()), index(task) {
    const int t = (int)(task % job.tiles());
    x = t % job.across() * TILE_W, y = t / job.across() * TILE_H;
    const int32_t* starts = job.starts + view * (job.tiles() + 1);
    begin = starts[t], end = starts[t + 1];
  }
};

// Calls row(offset in the tile's storage, offset in the image, pixels) for each row of each block inside the image.
template <class Row>
static inline void for_rows(const Job& job, const Tile& tile, const Row& row) {
  for (int by = 0; by < BLOCKS_Y; by++)
    for (int r = 0; r < BLOCK_H; r++) {
      const int y = tile.y + by * BLOCK_H + r;
      if (y >= job.H) return;
      for (int bx = 0; bx < BLOCKS_X; bx++) {
        const int x = tile.x + bx * BLOCK_W, n = std::min(BLOCK_W, job.W - x);
        if (n <= 0) break;
        row((by * BLOCKS_X + bx) * L + r * BLOCK_W, (int64_t)y * job.W + x, n);
      }
    }
}

static inline void write_plane(const Job& job, const Tile& tile, const float* from, float* image) {
  for_rows(job, tile, [&](int t, int64_t i, int n) {
    if (n == BLOCK_W) std::memcpy(image + i, from + t, 4 * BLOCK_W);
    else std::memcpy(image + i, from + t, 4 * n);
  });
}

static inline void read_plane(const Job& job, const Tile& tile, const float* image, float* to) {
  for_rows(job, tile, [&](int t, int64_t i, int n) {
    if (n == BLOCK_W) std::memcpy(to + t, image + i, 4 * BLOCK_W);
    else std::memcpy(to + t, image + i, 4 * n);
  });
}

// Stable radix sort of a view's drawn Gaussians by z: positive floats are in the order of their bits.
struct DepthOrder {
  std::vector<uint32_t> key, key2;
  std::vector<int32_t> id, id2;

  DepthOrder(const Job& job, int64_t view) {
    const Rect* rects = job.rects + view * job.N;
    const float* z = job.z + view * job.N;
    key.resize(job.N), id.resize(job.N);
    size_t n = 0;
    uint32_t low = UINT32_MAX, high = 0;
    for (int g = 0; g < job.N; g++) {
      if (rects[g].empty()) continue;
      uint32_t bits;
      std::memcpy(&bits, z + g, 4);
      low = std::min(low, bits), high = std::max(high, bits);
      key[n] = bits, id[n] = g, n++;
    }
    key.resize(n), id.resize(n), key2.resize(n), id2.resize(n);
    for (int shift = 0; n && shift < 32 && ((high - low) >> shift) > 0; shift += 12) pass(low, shift);
  }

  void pass(uint32_t low, int shift) {
    uint32_t place[4096] = {}, sum = 0;
    const size_t n = key.size();
    for (size_t i = 0; i < n; i++) place[((key[i] - low) >> shift) & 4095]++;
    for (uint32_t& p : place) {
      const uint32_t count = p;
      p = sum, sum += count;
    }
    for (size_t i = 0; i < n; i++) {
      const uint32_t to = place[((key[i] - low) >> shift) & 4095]++;
      key2[to] = key[i], id2[to] = id[i];
    }
    key.swap(key2), id.swap(id2);
  }
};

// Fills ids and starts. Scattering in depth order leaves every tile's list in depth order.
static void list_tiles(const Job& job) {
  const int across = job.across(), tiles = job.tiles();
  parallel((int64_t)job.B * job.V, job.threads, [&](int64_t view) {
    const DepthOrder order(job, view);
    const Rect* rects = job.rects + view * job.N;
    int32_t* ids = job.ids + job.base[view];
    std::vector<int32_t> next(tiles + 1, 0);
    auto for_tiles = [&](int g, auto body) {
      const Rect r = rects[g];
      for (int y = r.y0 / TILE_H; y <= r.y1 / TILE_H; y++)
        for (int x = r.x0 / TILE_W; x <= r.x1 / TILE_W; x++) body(y * across + x);
    };
    for (int g : order.id) for_tiles(g, [&](int t) { next[t + 1]++; });
    for (int t = 0; t < tiles; t++) next[t + 1] += next[t];
    std::memcpy(job.starts + view * (tiles + 1), next.data(), 4 * (tiles + 1));
    for (int g : order.id) for_tiles(g, [&](int t) { ids[next[t]++] = g; });
  });
}

// The blocks of a tile that a splat can touch, row by row.
struct Footprint {
  int by0, by1, bx0, bx1;
  bool wide;
  float mean_x, mean_y, tilt, spread, reach, y_right, curve;

  Footprint(const Tile& tile, const Rect& rect, const float* e) : mean_x(e[0] - tile.x), mean_y(e[1] - tile.y) {
    bx0 = std::max(rect.x0 - tile.x, 0) / BLOCK_W, bx1 = std::min(rect.x1 - tile.x, TILE_W - 1) / BLOCK_W;
    by0 = std::max(rect.y0 - tile.y, 0) / BLOCK_H, by1 = std::min(rect.y1 - tile.y, TILE_H - 1) / BLOCK_H;
    wide = bx1 - bx0 >= 2;
    if (!wide) return;
    // With d = mean - pixel, the ellipse A dx^2 + 2 B dx dy + C dy^2 <= reach2 is, at a given dy,
    // dx = -tilt dy +- sqrt(reach - curve dy^2); its rightmost and leftmost points are at dy = -+ y_right.
    const float A = e[2], B = e[3], C = e[4], inverse = 1.f / A, det = std::max(A * C - B * B, 1e-30f);
    tilt = B * inverse, reach = e[6] * inverse, curve = det * inverse * inverse;
    y_right = B / C * std::sqrt(e[6] * C / det);
  }

  // First and last block of a row of blocks.
  void row(int by, int& first, int& last) const {
    first = bx0, last = bx1;
    if (!wide) return;
    const float high = mean_y - (by * BLOCK_H + 0.5f), low = high - (BLOCK_H - 1);
    const float dy1 = std::min(std::max(-y_right, low), high), dy0 = std::min(std::max(y_right, low), high);
    const float dx1 = -tilt * dy1 + std::sqrt(std::max(reach - curve * dy1 * dy1, 0.f));
    const float dx0 = -tilt * dy0 - std::sqrt(std::max(reach - curve * dy0 * dy0, 0.f));
    const float left = mean_x - dx1 - 0.51f, right = mean_x - dx0 - 0.49f;  // 0.01 pixel to spare
    if (left > first * BLOCK_W) first = (int)std::min(left, (float)TILE_W) / BLOCK_W;  // floor of the first pixel
    if (right < last * BLOCK_W) last = right < 0 ? -1 : (int)right / BLOCK_W;
  }
};
