/* What training on a CPU has of its own: grids are channels last, fp32 or bf16, with a multiple of 8 channels.
   Sums are taken in a number of groups that the number of threads does not change: the same bits come out with any.

   1. The weight gradient of a depthwise k x k convolution: stride 1, zeros around, fp32.

   gradient[i, j, c] = sum over pictures, rows and columns of in[row + i - k/2, column + j - k/2, c] * grad[row, column, c]

   LANES channels at a time, a picture's are first laid side by side with their border of zeros, so that the sums of
   RUN taps stay in registers over the whole picture.

   2. BatchNorm and the ReLU after it: normalised and cut in one pass over the grid, and one gradient of both.

   3. Bytes of colours to normalised numbers, in one pass. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, RUN = 7, GROUPS = 16, ROW_GROUPS = 64, ALIGNED = 64 };
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef double wide __attribute__((vector_size(8 * LANES), aligned(8)));

#define INLINE static inline __attribute__((always_inline))

static inline int least(int a, int b) { return a < b ? a : b; }

/* A bf16 number is the upper half of the fp32 one. */
INLINE vec load(const void *from, size_t at, int bf16) {
  if (bf16) return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + at), bits) << 16);
  return *(const unaligned *)((const float *)from + at);
}

/* To the nearest bf16, even where two are as near; a NaN stays one. */
INLINE void store(void *to, size_t at, vec x, int bf16) {
  if (!bf16) {
    *(unaligned *)((float *)to + at) = x;
    return;
  }
  bits from = (bits)x, near = (from + 0x7fff + (from >> 16 & 1)) >> 16, nan = (bits)(x != x);
  *(halves *)((uint16_t *)to + at) = __builtin_convertvector((near & ~nan) | (0x7fc0 & nan), halves);
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

/* Group number `group` of the rows of a grid: the first one and, with group + 1, the one after its last. */
static inline size_t first_row(size_t rows, int group) { return rows * group / ROW_GROUPS; }

/* Where a normalised number is cut to 0. A NaN is not. */
INLINE vec cut(vec x, vec where) { return (vec)((bits)x & ~(bits)(where <= 0)); }

INLINE void sum_rows(const void *in, size_t row, size_t until, int channels, int bf16, double *sum, double *square) {
  for (; row < until; row++)
    for (int c = 0; c < channels; c += LANES) {
      wide x = __builtin_convertvector(load(in, row * channels + c, bf16), wide);
      *(wide *)(sum + c) += x;
      *(wide *)(square + c) += x * x;
    }
}

INLINE void norm_rows(const void *in, void *out, size_t row, size_t until, int channels, int bf16, const float *scale,
                      const float *shift) {
  for (; row < until; row++)
    for (int c = 0; c < channels; c += LANES) {
      vec z = load(in, row * channels + c, bf16) * *(unaligned *)(scale + c) + *(unaligned *)(shift + c);
      store(out, row * channels + c, cut(z, z), bf16);
    }
}

/* The groups' sums added up, for each channel. */
static void add_groups(const double *sums, double *total, int channels) {
  for (int group = 0; group < ROW_GROUPS; group++)
    for (int c = 0; c < channels; c++) total[c] += sums[(size_t)group * channels + c];
}

/* What a number is multiplied by, and what is added to it. */
static void affine(const float *weight, const float *bias, const float *mean, const float *variance, float eps,
                   int channels, float *scale, float *shift) {
  for (int c = 0; c < channels; c++) {
    scale[c] = (float)(weight[c] / sqrt((double)variance[c] + eps));
    shift[c] = bias[c] - mean[c] * scale[c];
  }
}

/* in, out: (rows, channels).  weight, bias, mean, variance: (channels), fp32; the last two are written, of all rows,
   the variance over rows, not over rows - 1.
   Returns 0, or 1 where memory is short. */
int norm_relu(const void *in, void *out, const float *weight, const float *bias, float *mean, float *variance,
              float eps, int bf16, size_t rows, int channels, int threads) {
  size_t per_group = (size_t)ROW_GROUPS * channels;
  double *sums = calloc(2 * per_group + 2 * channels, sizeof(double)), *squares = sums + per_group;
  float *scale = malloc(2 * channels * sizeof(float)), *shift = scale + channels;
  int failed = !sums || !scale;
  if (!failed) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1), at = (size_t)group * channels;
      if (bf16) sum_rows(in, row, until, channels, 1, sums + at, squares + at);
      else sum_rows(in, row, until, channels, 0, sums + at, squares + at);
    }
    double *sum = squares + per_group, *square = sum + channels;
    add_groups(sums, sum, channels);
    add_groups(squares, square, channels);
    for (int c = 0; c < channels; c++) {
      double middle = sum[c] / rows, around = square[c] / rows - middle * middle;
      mean[c] = (float)middle;
      variance[c] = around < 0 ? 0 : (float)around;
    }
    affine(weight, bias, mean, variance, eps, channels, scale, shift);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1);
      if (bf16) norm_rows(in, out, row, until, channels, 1, scale, shift);
      else norm_rows(in, out, row, until, channels, 0, scale, shift);
    }
  }
  free(sums);
  free(scale);
  return failed;
}

INLINE void sum_gradient(const void *in, const void *grad, size_t row, size_t until, int channels, int bf16,
                         const float *scale, const float *shift, const float *mean, double *sum, double *product) {
  for (; row < until; row++)
    for (int c = 0; c < channels; c += LANES) {
      vec x = load(in, row * channels + c, bf16);
      vec z = x * *(unaligned *)(scale + c) + *(unaligned *)(shift + c);
      vec g = cut(load(grad, row * channels + c, bf16), z);
      *(wide *)(sum + c) += __builtin_convertvector(g, wide);
      *(wide *)(product + c) += __builtin_convertvector(g * (x - *(unaligned *)(mean + c)), wide);
    }
}

INLINE void gradient_rows(const void *in, const void *grad, void *out, size_t row, size_t until, int channels,
                          int bf16, const float *scale, const float *shift, const float *mean, const float *slope,
                          const float *offset) {
  for (; row < until; row++)
    for (int c = 0; c < channels; c += LANES) {
      vec x = load(in, row * channels + c, bf16), by = *(unaligned *)(scale + c);
      vec g = cut(load(grad, row * channels + c, bf16), x * by + *(unaligned *)(shift + c));
      vec away = x - *(unaligned *)(mean + c);
      store(out, row * channels + c, g * by + away * *(unaligned *)(slope + c) + *(unaligned *)(offset + c), bf16);
    }
}

/* in, weight, bias, mean, variance: as above.  grad: of the output; out: of the input, both (rows, channels).
   of_weight, of_bias: (channels), fp32, written.
   Returns 0, or 1 where memory is short. */
int norm_relu_gradient(const void *in, const void *grad, void *out, const float *weight, const float *bias,
                       const float *mean, const float *variance, float *of_weight, float *of_bias, float eps,
                       int bf16, size_t rows, int channels, int threads) {
  size_t per_group = (size_t)ROW_GROUPS * channels;
  double *sums = calloc(2 * per_group + 2 * channels, sizeof(double)), *products = sums + per_group;
  float *scale = malloc(4 * channels * sizeof(float)), *shift = scale + channels;
  float *slope = shift + channels, *offset = slope + channels;
  int failed = !sums || !scale;
  if (!failed) {
    affine(weight, bias, mean, variance, eps, channels, scale, shift);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1), at = (size_t)group * channels;
      if (bf16) sum_gradient(in, grad, row, until, channels, 1, scale, shift, mean, sums + at, products + at);
      else sum_gradient(in, grad, row, until, channels, 0, scale, shift, mean, sums + at, products + at);
    }
    double *sum = products + per_group, *product = sum + channels;
    add_groups(sums, sum, channels);
    add_groups(products, product, channels);
    for (int c = 0; c < channels; c++) {
      double around = (double)variance[c] + eps;
      of_weight[c] = (float)(product[c] / sqrt(around));
      of_bias[c] = (float)sum[c];
      slope[c] = (float)(-scale[c] * product[c] / around / rows);
      offset[c] = (float)(-scale[c] * sum[c] / rows);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1);
      if (bf16) gradient_rows(in, grad, out, row, until, channels, 1, scale, shift, mean, slope, offset);
      else gradient_rows(in, grad, out, row, until, channels, 0, scale, shift, mean, slope, offset);
    }
  }
  free(sums);
  free(scale);
  return failed;
}

enum { COLOURS = 3, TURN = COLOURS * LANES };

/* in: (pixels, 3) bytes; out: as many fp32 numbers, each byte times its colour's scale, plus its shift.  Returns 0. */
int normalise(const uint8_t *in, float *out, const float *scale, const float *shift, size_t pixels, int threads) {
  float by[TURN], plus[TURN];
  for (int i = 0; i < TURN; i++) {
    by[i] = scale[i % COLOURS];
    plus[i] = shift[i % COLOURS];
  }
  size_t turns = pixels / LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (size_t turn = 0; turn < turns; turn++)
    for (int i = 0; i < TURN; i++) out[turn * TURN + i] = in[turn * TURN + i] * by[i] + plus[i];
  for (size_t i = turns * TURN; i < pixels * COLOURS; i++)
    out[i] = in[i] * scale[i % COLOURS] + shift[i % COLOURS];
  return 0;
}
