/* What training on a CPU has of its own: grids are channels last, fp32 or bf16, with a multiple of 8 channels.
   Sums are taken in a number of groups that the number of threads does not change: the same bits come out with any.

   1. The weight gradient of a depthwise k x k convolution: stride 1, zeros around, fp32.

   gradient[i, j, c] = sum over images, rows and columns of in[row + i - k/2, column + j - k/2, c] * grad[row, column, c]

   LANES channels at a time, an image's are first laid side by side with their border of zeros, so that the sums of
   RUN taps stay in registers over the whole image.

   2. BatchNorm and the ReLU after it: normalised and cut in one pass over the grid, and one gradient of both. Each
   image's numbers may have a factor after that, as stochastic depth gives them.

   3. Bytes of colours to normalised numbers, in one pass. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
typedef __m128bh __m128bh_u __attribute__((aligned(2)));
#endif

enum { LANES = 8, RUN = 7, GROUPS = 16, ROW_GROUPS = 64, ALIGNED = 64 };
enum { BLOCK = 4, ROWS = 64 }; /* vectors side by side in registers, and rows added up in fp32, then in double */
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
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  *(__m128bh_u *)((uint16_t *)to + at) = _mm256_cvtneps_pbh((__m256)x);
#else
  bits from = (bits)x, near = (from + 0x7fff + (from >> 16 & 1)) >> 16, nan = (bits)(x != x);
  *(halves *)((uint16_t *)to + at) = __builtin_convertvector((near & ~nan) | (0x7fc0 & nan), halves);
#endif
}

static void add_image(const void *in, const void *grad, size_t first_at, int bf16, float *sums, vec *x, vec *g,
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
          add_image(in, grad, n * plane + c, bf16, sums + group * taps + c, x, x + padded, height, width, channels,
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

/* How much of an image's change counts: rows one after the other belong to one image, and have its factor. */
typedef struct {
  const float *factors; /* none: 1 for all */
  size_t rows;          /* of an image */
} shares;

INLINE float share_of(shares of, size_t row) { return of.factors ? of.factors[row / of.rows] : 1; }

/* The row up to which one factor, and one sum in fp32, serve. */
INLINE size_t next_row(size_t row, size_t until, shares of) {
  size_t next = row + ROWS < until ? row + ROWS : until;
  size_t image = of.factors ? (row / of.rows + 1) * of.rows : until;
  return next < image ? next : image;
}

/* Where a normalised number is cut to 0. A NaN is not. */
INLINE vec cut(vec x, vec where) { return (vec)((bits)x & ~(bits)(where <= 0)); }

/* Adds the sums of a block of channels, `width` vectors of them, over some rows: of the numbers less the pivot, and of
   their squares. */
INLINE void sum_block(const void *in, size_t row, size_t until, int channels, int bf16, int width, const float *pivot,
                      double *sum, double *square) {
  vec s[BLOCK] = {0}, q[BLOCK] = {0}, less[BLOCK];
  for (int v = 0; v < width; v++) less[v] = *(const unaligned *)(pivot + v * LANES);
  for (; row < until; row++)
    for (int v = 0; v < width; v++) {
      vec x = load(in, row * channels + v * LANES, bf16) - less[v];
      s[v] += x;
      q[v] += x * x;
    }
  for (int v = 0; v < width; v++) {
    *(wide *)(sum + v * LANES) += __builtin_convertvector(s[v], wide);
    *(wide *)(square + v * LANES) += __builtin_convertvector(q[v], wide);
  }
}

INLINE const void *moved(const void *in, int channels, int bf16) {
  return (const char *)in + (size_t)channels * (bf16 ? 2 : 4);
}

INLINE void sum_rows(const void *in, size_t row, size_t until, int channels, int bf16, const float *pivot, double *sum,
                     double *square) {
  for (size_t next; row < until; row = next) {
    next = row + ROWS < until ? row + ROWS : until;
    for (int c = 0, width; c < channels; c += width * LANES) {
      width = least(BLOCK, (channels - c) / LANES);
      const void *at = moved(in, c, bf16);
      if (width == BLOCK) sum_block(at, row, next, channels, bf16, BLOCK, pivot + c, sum + c, square + c);
      else sum_block(at, row, next, channels, bf16, width, pivot + c, sum + c, square + c);
    }
  }
}

INLINE void norm_block(const void *in, const void *more, void *out, size_t row, size_t until, int channels, int bf16,
                       int width, float share, const float *scale, const float *shift) {
  vec by[BLOCK], plus[BLOCK];
  for (int v = 0; v < width; v++) {
    by[v] = *(const unaligned *)(scale + v * LANES);
    plus[v] = *(const unaligned *)(shift + v * LANES);
  }
  for (; row < until; row++)
    for (int v = 0; v < width; v++) {
      vec z = load(in, row * channels + v * LANES, bf16) * by[v] + plus[v];
      z = cut(z, z) * share;
      if (more) z += load(more, row * channels + v * LANES, bf16);
      store(out, row * channels + v * LANES, z, bf16);
    }
}

INLINE void norm_rows(const void *in, const void *more, void *out, size_t row, size_t until, int channels, int bf16,
                      shares of, const float *scale, const float *shift) {
  for (size_t next; row < until; row = next) {
    float share = share_of(of, row);
    next = next_row(row, until, of);
    for (int c = 0, width; c < channels; c += width * LANES) {
      width = least(BLOCK, (channels - c) / LANES);
      const void *at = moved(in, c, bf16), *plus = more ? moved(more, c, bf16) : NULL;
      void *to = (void *)moved(out, c, bf16);
      if (width == BLOCK && more) norm_block(at, plus, to, row, next, channels, bf16, BLOCK, share, scale + c, shift + c);
      else if (width == BLOCK) norm_block(at, NULL, to, row, next, channels, bf16, BLOCK, share, scale + c, shift + c);
      else norm_block(at, plus, to, row, next, channels, bf16, width, share, scale + c, shift + c);
    }
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

/* in, out: (rows, channels).  factors: one for each image_rows rows, which what is left after the ReLU is multiplied
   by, or none.  more: as many numbers as in, added then, or none.  weight, bias, mean, variance: (channels), fp32; the
   last two are written, of all rows, the variance over rows, not over rows - 1.
   Returns 0, or 1 where memory is short. */
int norm_relu(const void *in, const void *more, const float *factors, void *out, const float *weight, const float *bias,
              float *mean, float *variance, float eps, int bf16, size_t rows, size_t image_rows, int channels,
              int threads) {
  shares of = {factors, image_rows};
  size_t per_group = (size_t)ROW_GROUPS * channels;
  double *sums = calloc(2 * per_group + 2 * channels, sizeof(double)), *squares = sums + per_group;
  float *scale = malloc(3 * channels * sizeof(float)), *shift = scale + channels, *pivot = shift + channels;
  int failed = !sums || !scale;
  if (!failed) {
    for (int c = 0; c < channels; c += LANES) *(unaligned *)(pivot + c) = load(in, c, bf16);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1), at = (size_t)group * channels;
      if (bf16) sum_rows(in, row, until, channels, 1, pivot, sums + at, squares + at);
      else sum_rows(in, row, until, channels, 0, pivot, sums + at, squares + at);
    }
    double *sum = squares + per_group, *square = sum + channels;
    add_groups(sums, sum, channels);
    add_groups(squares, square, channels);
    for (int c = 0; c < channels; c++) {
      double middle = sum[c] / rows, around = square[c] / rows - middle * middle;
      mean[c] = (float)(pivot[c] + middle);
      variance[c] = around < 0 ? 0 : (float)around;
    }
    affine(weight, bias, mean, variance, eps, channels, scale, shift);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int group = 0; group < ROW_GROUPS; group++) {
      size_t row = first_row(rows, group), until = first_row(rows, group + 1);
      if (bf16) norm_rows(in, more, out, row, until, channels, 1, of, scale, shift);
      else norm_rows(in, more, out, row, until, channels, 0, of, scale, shift);
    }
  }
  free(sums);
  free(scale);
  return failed;
}

INLINE void sum_gradient_block(const void *in, const void *grad, size_t row, size_t until, int channels, int bf16,
                               int width, float share, const float *scale, const float *shift, const float *mean,
                               double *sum, double *product) {
  vec s[BLOCK] = {0}, p[BLOCK] = {0}, by[BLOCK], plus[BLOCK], less[BLOCK];
  for (int v = 0; v < width; v++) {
    by[v] = *(const unaligned *)(scale + v * LANES);
    plus[v] = *(const unaligned *)(shift + v * LANES);
    less[v] = *(const unaligned *)(mean + v * LANES);
  }
  for (; row < until; row++)
    for (int v = 0; v < width; v++) {
      vec x = load(in, row * channels + v * LANES, bf16);
      vec g = cut(load(grad, row * channels + v * LANES, bf16) * share, x * by[v] + plus[v]);
      s[v] += g;
      p[v] += g * (x - less[v]);
    }
  for (int v = 0; v < width; v++) {
    *(wide *)(sum + v * LANES) += __builtin_convertvector(s[v], wide);
    *(wide *)(product + v * LANES) += __builtin_convertvector(p[v], wide);
  }
}

INLINE void sum_gradient(const void *in, const void *grad, size_t row, size_t until, int channels, int bf16, shares of,
                         const float *scale, const float *shift, const float *mean, double *sum, double *product) {
  for (size_t next; row < until; row = next) {
    float share = share_of(of, row);
    next = next_row(row, until, of);
    for (int c = 0, width; c < channels; c += width * LANES) {
      width = least(BLOCK, (channels - c) / LANES);
      const void *at = moved(in, c, bf16), *by = moved(grad, c, bf16);
      if (width == BLOCK)
        sum_gradient_block(at, by, row, next, channels, bf16, BLOCK, share, scale + c, shift + c, mean + c, sum + c,
                           product + c);
      else
        sum_gradient_block(at, by, row, next, channels, bf16, width, share, scale + c, shift + c, mean + c, sum + c,
                           product + c);
    }
  }
}

INLINE void gradient_block(const void *in, const void *grad, void *out, size_t row, size_t until, int channels,
                           int bf16, int width, float share, const float *scale, const float *shift, const float *mean,
                           const float *slope, const float *offset) {
  vec by[BLOCK], plus[BLOCK], less[BLOCK], sloping[BLOCK], off[BLOCK];
  for (int v = 0; v < width; v++) {
    by[v] = *(const unaligned *)(scale + v * LANES);
    plus[v] = *(const unaligned *)(shift + v * LANES);
    less[v] = *(const unaligned *)(mean + v * LANES);
    sloping[v] = *(const unaligned *)(slope + v * LANES);
    off[v] = *(const unaligned *)(offset + v * LANES);
  }
  for (; row < until; row++)
    for (int v = 0; v < width; v++) {
      vec x = load(in, row * channels + v * LANES, bf16);
      vec g = cut(load(grad, row * channels + v * LANES, bf16) * share, x * by[v] + plus[v]);
      store(out, row * channels + v * LANES, g * by[v] + (x - less[v]) * sloping[v] + off[v], bf16);
    }
}

INLINE void gradient_rows(const void *in, const void *grad, void *out, size_t row, size_t until, int channels,
                          int bf16, shares of, const float *scale, const float *shift, const float *mean,
                          const float *slope, const float *offset) {
  for (size_t next; row < until; row = next) {
    float share = share_of(of, row);
    next = next_row(row, until, of);
    for (int c = 0, width; c < channels; c += width * LANES) {
      width = least(BLOCK, (channels - c) / LANES);
      const void *at = moved(in, c, bf16), *by = moved(grad, c, bf16);
      void *to = (void *)moved(out, c, bf16);
      if (width == BLOCK)
        gradient_block(at, by, to, row, next, channels, bf16, BLOCK, share, scale + c, shift + c, mean + c, slope + c,
                       offset + c);
      else
        gradient_block(at, by, to, row, next, channels, bf16, width, share, scale + c, shift + c, mean + c, slope + c,
                       offset + c);
    }
  }
}

/* in, factors, weight, bias, mean, variance: as above.  grad: of the output; out: of the input, both (rows, channels).
   of_weight, of_bias: (channels), fp32, written.
   Returns 0, or 1 where memory is short. */
int norm_relu_gradient(const void *in, const void *grad, const float *factors, void *out, const float *weight,
                       const float *bias, const float *mean, const float *variance, float *of_weight, float *of_bias,
                       float eps, int bf16, size_t rows, size_t image_rows, int channels, int threads) {
  shares of = {factors, image_rows};
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
      if (bf16) sum_gradient(in, grad, row, until, channels, 1, of, scale, shift, mean, sums + at, products + at);
      else sum_gradient(in, grad, row, until, channels, 0, of, scale, shift, mean, sums + at, products + at);
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
      if (bf16) gradient_rows(in, grad, out, row, until, channels, 1, of, scale, shift, mean, slope, offset);
      else gradient_rows(in, grad, out, row, until, channels, 0, of, scale, shift, mean, slope, offset);
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
