/* The weight gradient of a depthwise k x k convolution: stride 1, zeros around, channels last, fp32 of fp32 or bf16.

   gradient[i, j, c] = sum over pictures, rows and columns of in[row + i - k/2, column + j - k/2, c] * grad[row, column, c]

   LANES channels at a time, a picture's are first laid side by side with their border of zeros, so that the sums of
   RUN taps stay in registers over the whole picture. Pictures are summed in GROUPS whatever the number of threads is:
   the same bits come out with any. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, RUN = 7, GROUPS = 16, ALIGNED = 64 };
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

static inline int least(int a, int b) { return a < b ? a : b; }

/* A bf16 number is the upper half of the fp32 one. */
static inline vec load(const void *from, size_t at, int bf16) {
  if (bf16) return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + at), bits) << 16);
  return *(const unaligned *)((const float *)from + at);
}

static void add_picture(const void *in, const void *grad, size_t first_at, int bf16, float *sums, vec *x, vec *g,
                        int height, int width, int channels, int kernel) {
  int pad = kernel / 2, wide = width + 2 * pad;
  for (int row = 0; row < height; row++)
    for (int col = 0; col < width; col++) {
      size_t place = (size_t)row * width + col;
      x[(row + pad) * wide + col + pad] = load(in, first_at + place * channels, bf16);
      g[place] = load(grad, first_at + place * channels, bf16);
    }
  for (int i = 0; i < kernel; i++)
    for (int first = 0; first < kernel; first += RUN) {
      vec sum[RUN] = {0};
      int run = least(RUN, kernel - first);
      for (int row = 0; row < height; row++) {
        const vec *at = x + (row + i) * wide + first, *by = g + row * width;
        if (run == RUN) /* the same with a constant bound: unrolled, in registers */
          for (int col = 0; col < width; col++)
            for (int j = 0; j < RUN; j++) sum[j] += by[col] * at[col + j];
        else
          for (int col = 0; col < width; col++)
            for (int j = 0; j < run; j++) sum[j] += by[col] * at[col + j];
      }
      for (int j = 0; j < run; j++) *(unaligned *)(sums + (size_t)(i * kernel + first + j) * channels) += sum[j];
    }
}

/* in, grad: (count, height, width, channels), both bf16 or both fp32, channels a multiple of 8.
   gradient: (k, k, channels), fp32.
   Returns 0, or 1 where memory is short. */
int depthwise_weight_gradient(const void *in, const void *grad, float *gradient, int bf16, int count, int height,
                              int width, int channels, int kernel, int threads) {
  size_t plane = (size_t)height * width * channels, taps = (size_t)kernel * kernel * channels;
  size_t padded = (size_t)(height + 2 * (kernel / 2)) * (width + 2 * (kernel / 2));
  size_t scratch = padded + (size_t)height * width, bytes = threads * scratch * sizeof(vec);
  int groups = least(count, GROUPS);
  float *sums = calloc(groups * taps, sizeof(float));
  vec *space = aligned_alloc(ALIGNED, (bytes + ALIGNED - 1) / ALIGNED * ALIGNED);
  int failed = !sums || !space;
  if (!failed) {
    memset(space, 0, bytes);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < groups; group++) {
      vec *x = space + omp_get_thread_num() * scratch;
      int until = (int)((size_t)count * (group + 1) / groups);
      for (int n = (int)((size_t)count * group / groups); n < until; n++)
        for (int c = 0; c < channels; c += LANES)
          add_picture(in, grad, n * plane + c, bf16, sums + group * taps + c, x, x + padded, height, width, channels,
                      kernel);
    }
    memcpy(gradient, sums, taps * sizeof(float));
    for (int group = 1; group < groups; group++)
      for (size_t t = 0; t < taps; t++) gradient[t] += sums[group * taps + t];
  }
  free(sums);
  free(space);
  return failed;
}
