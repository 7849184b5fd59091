// Differentiable rasteriser of 3D Gaussians for the CPU. Plain C interface: no Python, no torch.
//
//   align3d_project   3D -> 2D Gaussians; returns how many (tile, Gaussian) pairs there are
//   align3d_render    depth order, tile lists, compositing
//   align3d_backward  gradients of all inputs; needs what the two above left in the job's buffers
#include "blend_backward.h"
#include "project_backward.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

// Asks for large pages, which makes touching fresh memory several times cheaper.
static void large_pages(void* start, int64_t bytes) {
#ifdef __linux__
  constexpr int64_t size = 2 << 20;
  const int64_t first = ((int64_t)start + size - 1) / size * size, last = ((int64_t)start + bytes) / size * size;
  if (last - first >= 4 * size) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Sizes that the caller needs to allocate the buffers: bytes of a job, lanes, tile width and height.
PUBLIC void align3d_layout(int32_t* out) {
  out[0] = sizeof(Job), out[1] = L, out[2] = TILE_W, out[3] = TILE_H;
}

PUBLIC int64_t align3d_project(const Job* job) {
  large_pages(job->records, 4 * job->record_floats() * job->B * job->V * job->N);
  return job->geometry ? project<true>(*job) : project<false>(*job);
}

PUBLIC void align3d_render(const Job* job) {
  list_tiles(*job);
  job->geometry ? blend<true>(*job) : blend<false>(*job);
}

PUBLIC void align3d_backward(const Job* job) {
  large_pages(job->tile_grads, 4 * job->record_floats() * job->base[(int64_t)job->B * job->V]);
  if (job->geometry) {
    unblend<true>(*job), unproject<true>(*job);
  } else {
    unblend<false>(*job), unproject<false>(*job);
  }
}
