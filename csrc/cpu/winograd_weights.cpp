// weights <- G (scale * g) G^T for each 3x3 kernel g: what Winograd's products multiply by, in
// panels of kPanel outputs side by side. For the gradient g is turned round, outputs and channels
// exchanged.
//
// 36 B read and 144 B written a kernel: all of ResNet-18, both ways, writes 350 MB.
// Computed in double: an error of a weight is the same at every pixel and adds up over layers. In
// float it made VGG-16's logits 3 times, ResNet-18's 1.4 times as wrong.
#include "declare.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// F(4,3): o <- G g for three vectors `step` apart. Row p is 1, p, p^2 over the product of the
// distances of p to the other points (winograd_transform.h).
FASTADV_FN void transform_taps3(const Doubles* g, int step, Doubles* o, int o_step) {
  const Doubles first = g[0], middle = g[step], last = g[2 * step];
  const Doubles ends = (first + last) * (1 / 3.), odd = middle * (1 / 3.);
  o[0] = first;
  o[o_step] = ends + odd;
  o[2 * o_step] = odd - ends;
  o[3 * o_step] = (first + middle * .5 + last * .25) * -(16 / 15.);
  o[4 * o_step] = (first - middle * 2. + last * 4.) * (1 / 15.);
  o[5 * o_step] = last;
}

// F(4,2) of the outer two, and the middle one.
FASTADV_FN void transform_taps2(const Doubles* g, int step, Doubles* o, int o_step) {
  const Doubles first = g[0], last = g[2 * step];
  o[0] = -first;
  o[o_step] = (first + last) * (2 / 9.);
  o[2 * o_step] = (first - last * .5) * (8 / 9.);
  o[3 * o_step] = (last * 2. - first) * (1 / 9.);
  o[4 * o_step] = last;
  o[5 * o_step] = g[step];
}

// The 36 numbers of a channel's kernels to kLanes outputs from `first` on, in rows of them.
FASTADV_FN void transform_kernels(const WinogradWeightsArgs& args, int64_t channel, int64_t first,
                                  float* to) {
  const int64_t outputs = args.gradient ? args.in : args.out;
  const int64_t channels = args.gradient ? args.out : args.in;
  const int64_t output_step = args.gradient ? 9 : args.in * 9;
  const int64_t channel_step = args.gradient ? args.in * 9 : 9;
  alignas(64) double taps[9][kLanes<float>] = {};
  for (int64_t i = 0; i < kLanes<float> && first + i < outputs && channel < channels; ++i) {
    const float* const from = args.weight + (first + i) * output_step + channel * channel_step;
    const int64_t filter = args.gradient ? channel : first + i;
    const double scale = args.scale ? args.scale[filter] : 1;
    for (int tap = 0; tap < 9; ++tap) taps[args.gradient ? 8 - tap : tap][i] = from[tap] * scale;
  }
  const auto transform_taps = args.strided ? transform_taps2 : transform_taps3;
  for (int i = 0; i < kLanes<float>; i += kLanes<double>) {
    Doubles g[9], columns[18], parts[36];
    for (int tap = 0; tap < 9; ++tap) g[tap] = load(taps[tap] + i);
    for (int j = 0; j < 3; ++j) transform_taps(g + j, 3, columns + j, 3);
    for (int k = 0; k < 6; ++k) transform_taps(columns + 3 * k, 1, parts + 6 * k, 1);
    for (int k = 0; k < 36; ++k) {
      const HalfFloats rounded = __builtin_convertvector(parts[k], HalfFloats);
      memcpy(to + k * kLanes<float> + i, &rounded, sizeof(rounded));
    }
  }
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
      alignas(64) float parts[36][kLanes<float>], next[36][kLanes<float>];
      transform_kernels(args, args.bfloat16 ? 2 * d : d, first + i, parts[0]);
      if (args.bfloat16) transform_kernels(args, 2 * d + 1, first + i, next[0]);
      for (int k = 0; k < 36; ++k) {
        const Floats v = load(parts[k]);
        Ints bits = bit_cast<Ints>(v);
        if (args.bfloat16) bits = encode<bfloat16>(v) | encode<bfloat16>(load(next[k])) << 16;
        store(args.weights + k * part + row * kPanel + i, bits);
      }
    }
  }
}

FASTADV_NAMESPACE_END
