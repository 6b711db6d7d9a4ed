// weights <- G (scale * g) G^T for each 3x3 kernel g: what Winograd's products multiply by, in
// panels of kPanel outputs side by side. For the gradient g is turned round, outputs and channels
// exchanged.
//
// 36 B read and 144 B written a kernel: all of ResNet-18, both ways, writes 350 MB.
#include "declare.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// F(4,3): o <- G g for three vectors `step` apart.
FASTADV_FN void transform_taps3(const Floats* g, int step, Floats* o, int o_step) {
  const Floats ends = (g[0] + g[2 * step]) * -(1 / 6.f), middle = g[step] * (1 / 6.f);
  const Floats far = g[0] * (1 / 24.f) + g[2 * step] * (1 / 6.f), half = g[step] * (1 / 12.f);
  o[0] = g[0] * .25f;
  o[o_step] = ends - middle;
  o[2 * o_step] = ends + middle;
  o[3 * o_step] = far + half;
  o[4 * o_step] = far - half;
  o[5 * o_step] = g[2 * step];
}

// F(4,2) of the outer two, and the middle one.
FASTADV_FN void transform_taps2(const Floats* g, int step, Floats* o, int o_step) {
  const Floats first = g[0], last = g[2 * step];
  o[0] = first * .5f;
  o[o_step] = (first + last) * -.5f;
  o[2 * o_step] = (last - first) * (1 / 6.f);
  o[3 * o_step] = first * (1 / 6.f) + last * (1 / 3.f);
  o[4 * o_step] = last;
  o[5 * o_step] = g[step];
}

// The 36 numbers of a channel's kernels to kLanes outputs from `first` on.
FASTADV_FN void transform_kernels(const WinogradWeightsArgs& args, int64_t channel, int64_t first,
                                  Floats* to) {
  const int64_t outputs = args.gradient ? args.in : args.out;
  const int64_t channels = args.gradient ? args.out : args.in;
  const int64_t output_step = args.gradient ? 9 : args.in * 9;
  const int64_t channel_step = args.gradient ? args.in * 9 : 9;
  alignas(64) float taps[9][kLanes<float>] = {};
  for (int64_t i = 0; i < kLanes<float> && first + i < outputs && channel < channels; ++i) {
    const float* const from = args.weight + (first + i) * output_step + channel * channel_step;
    const int64_t filter = args.gradient ? channel : first + i;
    const float scale = args.scale ? args.scale[filter] : 1;
    for (int tap = 0; tap < 9; ++tap) taps[args.gradient ? 8 - tap : tap][i] = from[tap] * scale;
  }
  Floats g[9], columns[18];
  for (int tap = 0; tap < 9; ++tap) g[tap] = load(taps[tap]);
  const auto transform_taps = args.strided ? transform_taps2 : transform_taps3;
  for (int j = 0; j < 3; ++j) transform_taps(g + j, 3, columns + j, 3);
  for (int k = 0; k < 6; ++k) transform_taps(columns + 3 * k, 1, to + 6 * k, 1);
}

// Rows are pairs of a panel and a channel, or two of them, channels first.
void winograd_weights(const WinogradWeightsArgs& args, int64_t begin, int64_t end) {
  const int64_t outputs = args.gradient ? args.in : args.out;
  const int64_t channels = args.gradient ? args.out : args.in;
  const int64_t depth = args.bfloat16 ? (channels + 1) / 2 : channels;
  const int64_t part = (outputs + kPanel - 1) / kPanel * depth * kPanel;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row / depth * kPanel, d = row % depth;
    for (int64_t i = 0; i < kPanel; i += kLanes<float>) {
      Floats parts[36], next[36];
      transform_kernels(args, args.bfloat16 ? 2 * d : d, first + i, parts);
      if (args.bfloat16) transform_kernels(args, 2 * d + 1, first + i, next);
      for (int k = 0; k < 36; ++k) {
        Ints bits = bit_cast<Ints>(parts[k]);
        if (args.bfloat16) bits = encode<bfloat16>(parts[k]) | encode<bfloat16>(next[k]) << 16;
        store(args.weights + k * part + row * kPanel + i, bits);
      }
    }
  }
}

FASTADV_NAMESPACE_END
