// Differentiable rasteriser of 3D Gaussians for the CPU. Plain C interface: no Python, no torch.
//
//   align3d_project   3D -> 2D Gaussians; returns how many (tile, Gaussian) pairs there are
//   align3d_render    depth order, tile lists, compositing
//   align3d_backward  gradients of all inputs; needs what the two above left in the job's buffers
#include "blend_backward.h"
#include "project_backward.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Sizes that the caller needs to allocate the buffers: bytes of a job, lanes, tile width and height.
PUBLIC void align3d_layout(int32_t* out) {
  out[0] = sizeof(Job), out[1] = L, out[2] = TILE_W, out[3] = TILE_H;
}

PUBLIC int64_t align3d_project(const Job* job) { return job->geometry ? project<true>(*job) : project<false>(*job); }

PUBLIC void align3d_render(const Job* job) {
  list_tiles(*job);
  job->geometry ? blend<true>(*job) : blend<false>(*job);
}

PUBLIC void align3d_backward(const Job* job) {
  if (job->geometry) {
    unblend<true>(*job), unproject<true>(*job);
  } else {
    unblend<false>(*job), unproject<false>(*job);
  }
}
