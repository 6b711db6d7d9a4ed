// weight <- the gradient of a 3x3 convolution of stride 1 by its weights, by Winograd's transforms:
// G^T (sum over the tiles of (B^T d B) * (A dy A^T)) G, the transpose of F(4x4,3x3), with 36
// multiplications a tile where the convolution has 144.
//
// A block of tiles is transformed first, those of x and those of dy; then a task sums, part by
// part, the products of some outputs with some channels, and after the last block transforms the
// sums into their taps. A NaN of x or dy spreads to all taps of its channel. x is read 2.25 times
// and dy once, 4 B an element; a block's transforms, 144 B a tile and channel, stay in the L3
// cache. Measured on one core of an EPYC 9004 with AVX-512, 32 images: 265 GFLOP/s with 64 channels
// of 32x32, 320 to 335 with 128 to 512, counted as the direct gradient's, for which oneDNN reaches
// 100 to 110, and 45 to 85 with 512 channels of 4x4.
#include "declare.h"
#include "gemm.h"
#include "sweep.h"
#include "winograd_transform.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

namespace {

constexpr int kParts = 36;
constexpr int64_t kPairs = kPanel * kPanel;  // of a panel's outputs with another's channels

// A register block: of so many outputs and panels of channels the sums stay in registers.
#if defined(__AVX512F__)
constexpr int kOutputs = 4, kPanels = 4;  // 16 of 32 registers
#elif defined(__AVX2__)
constexpr int kOutputs = 4, kPanels = 1;  // 8 of 16
#else
constexpr int kOutputs = 2, kPanels = 1;  // 8 of 16
#endif

// o <- A d for four vectors `step` apart: column p of A^T.
FASTADV_FN void transform_gradient(const Floats* d, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats half = constant<Floats>(.5f), quarter = constant<Floats>(.25f);
  const Floats eighth = constant<Floats>(.125f);
  const Floats d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  const Floats even = d0 + d2, odd = d1 + d3;
  o[0] = d0;
  o[o_step] = even + odd;
  o[2 * o_step] = even - odd;
  o[3 * o_step] = multiply_add(half, d1, d0) + multiply_add(eighth, d3, quarter * d2);
  o[4 * o_step] = multiply_add(four, d2, d0) - multiply_add(eight, d3, two * d1);
  o[5 * o_step] = d3;
}

// o <- G^T m for six vectors `step` apart.
FASTADV_FN void transform_sums(const Floats* m, int step, Floats* o, int o_step) {
  const Floats third = constant<Floats>(1 / 3.f), fifteenth = constant<Floats>(1 / 15.f);
  const Floats m4 = fifteenth * m[4 * step], m3 = fifteenth * m[3 * step];
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats sixteen = constant<Floats>(16);
  const Floats ends = third * (m[step] - m[2 * step]), middle = third * (m[step] + m[2 * step]);
  o[0] = multiply_add(-sixteen, m3, m4) + (m[0] + ends);
  o[o_step] = middle - multiply_add(eight, m3, two * m4);
  o[2 * o_step] = multiply_add(four, m4 - m3, ends) + m[5 * step];
}

struct Gradient {  // the form of dy's tiles, as transform_patch takes it
  static constexpr int kPatch = 4, kParts = 6;
  FASTADV_FN static void input(const Floats* d, int step, Floats* o, int o_step) {
    transform_gradient(d, step, o, o_step);
  }
};

struct Image {
  const float* data;  // (samples, height, width, channels)
  int64_t height, width, channels;
  int64_t before;  // pixels of its first patch that stand before the image
};

// Tile t of the block, of panel p and part k, goes to `to` at ((p * 36 + k) * args.apart + t).
template <class Form>
void transform_tile(const WinogradWeightGradientArgs& args, const Image& image, int64_t t,
                    const float* zeros, float* to) {
  constexpr int P = Form::kPatch;
  const int64_t down = (args.rows + 3) / 4, across = (args.columns + 3) / 4, tile = args.first + t;
  const int64_t sample = tile / (down * across);
  const int64_t top = tile / across % down * 4 - image.before;
  const int64_t left = tile % across * 4 - image.before;
  const float* pixels[P * P];
  for (int i = 0; i < P * P; ++i) {
    const int64_t row = top + i / P, column = left + i % P;
    const bool inside = row >= 0 && row < image.height && column >= 0 && column < image.width;
    const int64_t pixel = (sample * image.height + row) * image.width + column;
    pixels[i] = inside ? image.data + pixel * image.channels : zeros;
  }
  each_register<float>(image.channels, [&](int64_t c, auto... n) {
    float* const place = to + (c / kPanel * kParts * args.apart + t) * kPanel + c % kPanel;
    transform_patch<Form>(
        [&](int i) { return load(pixels[i] + c, n...); },
        [&](int k, Floats v) { store(place + k * args.apart * kPanel, bit_cast<Ints>(v)); });
  });
}

// sums (P panels of channels, kPairs of 36 parts apart) <- or += of R outputs, over all tiles.
template <int R, int P>
FASTADV_FN void add_products(const float* grad, const float* x, int64_t panel, int64_t tiles,
                             float* sums, bool add) {
  constexpr int Q = P * kPanelVectors;
  Floats sum[R][Q] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    Floats b[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      b[q] = load(x + q / kPanelVectors * panel + t * kPanel + q % kPanelVectors * kLanes<float>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats a = broadcast(grad[t * kPanel + r]);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[r][q] = multiply_add(a, b[q], sum[r][q]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      float* const to = sums + q / kPanelVectors * kParts * kPairs + r * kPanel +
                        q % kPanelVectors * kLanes<float>;
      store(to, bit_cast<Ints>(add ? sum[r][q] + load(to) : sum[r][q]));
    }
  }
}

// All 16 outputs of a panel with `panels` panels of channels.
template <int P = kPanels>
void add_panels(const float* grad, const float* x, int64_t panel, int64_t panels, int64_t tiles,
                float* sums, bool add) {
  if constexpr (P > 0) {
    for (; panels >= P; panels -= P) {
      for (int r = 0; r < kPanel; r += kOutputs) {
        add_products<kOutputs, P>(grad + r, x, panel, tiles, sums + r * kPanel, add);
      }
      x += P * panel;
      sums += P * kParts * kPairs;
    }
    add_panels<P - 1>(grad, x, panel, panels, tiles, sums, add);
  }
}

// The taps of a panel's outputs with another's channels from their sums, (36, kPanel, kPanel).
void write_taps(const WinogradWeightGradientArgs& args, int64_t output, int64_t channel,
                const float* sums) {
  const int64_t outputs = args.outputs - output < kPanel ? args.outputs - output : kPanel;
  const int64_t channels = args.channels - channel < kPanel ? args.channels - channel : kPanel;
  for (int64_t k = 0; k < outputs; ++k) {
    float* const to = args.weight + ((output + k) * args.channels + channel) * 9;
    for (int64_t i = 0; i < channels; i += kLanes<float>) {
      alignas(64) float taps[9][kLanes<float>];
      Floats columns[18], all[9];
      for (int j = 0; j < 6; ++j) {
        Floats m[6];
        for (int p = 0; p < 6; ++p) m[p] = load(sums + (6 * p + j) * kPairs + k * kPanel + i);
        transform_sums(m, 1, columns + j, 6);
      }
      for (int r = 0; r < 3; ++r) transform_sums(columns + 6 * r, 1, all + 3 * r, 1);
      for (int tap = 0; tap < 9; ++tap) store(taps[tap], bit_cast<Ints>(all[tap]));
      const int64_t lanes = channels - i < kLanes<float> ? channels - i : kLanes<float>;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        for (int tap = 0; tap < 9; ++tap) to[(i + lane) * 9 + tap] = taps[tap][lane];
      }
    }
  }
}

}  // namespace

void winograd_learn_tiles(const WinogradWeightGradientArgs& args, int64_t begin, int64_t end) {
  const int64_t most = args.channels > args.outputs ? args.channels : args.outputs;
  const int64_t width = (most + kPanel - 1) / kPanel * kPanel;
  float* const zeros = workspace(width);
  memset(zeros, 0, width * sizeof(float));
  const Image x{args.x, args.height, args.width, args.channels, args.padding};
  const Image grad{args.grad, args.rows, args.columns, args.outputs, 0};
  for (int64_t t = begin; t < end; ++t) transform_tile<Plain>(args, x, t, zeros, args.patches);
  for (int64_t t = begin; t < end; ++t) transform_tile<Gradient>(args, grad, t, zeros, args.tiles);
}

// Task i is chunk i % chunks of the channels with group i / chunks of the outputs.
void winograd_learn_taps(const WinogradWeightGradientArgs& args, int64_t begin, int64_t end) {
  const int64_t across = (args.channels + kPanel - 1) / kPanel;
  const int64_t down = (args.outputs + kPanel - 1) / kPanel;
  const int64_t chunks = (across + kLearnChannels - 1) / kLearnChannels;
  constexpr int64_t kBlock = kParts * kPairs, kSums = kLearnOutputs * kLearnChannels * kBlock;
  const int64_t part = args.apart * kPanel;
  float* const own = args.sums ? nullptr : workspace(kSums);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task % chunks * kLearnChannels, k = task / chunks * kLearnOutputs;
    const int64_t panels = across - c < kLearnChannels ? across - c : kLearnChannels;
    const int64_t rows = down - k < kLearnOutputs ? down - k : kLearnOutputs;
    float* const sums = own ? own : args.sums + task * kSums;
    for (int i = 0; i < kParts; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        add_panels(args.tiles + ((k + r) * kParts + i) * part,
                   args.patches + (c * kParts + i) * part, kParts * part, panels, args.count,
                   sums + r * kLearnChannels * kBlock + i * kPairs, args.first > 0);
      }
    }
    if (!args.last) continue;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t q = 0; q < panels; ++q) {
        write_taps(args, (k + r) * kPanel, (c + q) * kPanel,
                   sums + (r * kLearnChannels + q) * kBlock);
      }
    }
  }
}

FASTADV_NAMESPACE_END
