// weights <- G (scale * g) G^T for each 3x3 kernel g: what Winograd's products multiply by, in
// panels of kPanel outputs side by side. For the gradient g is turned round, outputs and channels
// exchanged.
//
// 36 B read and 144 B written a kernel: all of ResNet-18, both ways, writes 295 MB.
#include "declare.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// o <- G g for three vectors `step` apart.
FASTADV_FN void transform_taps(const Floats* g, int step, Floats* o, int o_step) {
  const Floats ends = (g[0] + g[2 * step]) * -(1 / 6.f), middle = g[step] * (1 / 6.f);
  const Floats far = g[0] * (1 / 24.f) + g[2 * step] * (1 / 6.f), half = g[step] * (1 / 12.f);
  o[0] = g[0] * .25f;
  o[o_step] = ends - middle;
  o[2 * o_step] = ends + middle;
  o[3 * o_step] = far + half;
  o[4 * o_step] = far - half;
  o[5 * o_step] = g[2 * step];
}

// Rows are pairs of a panel and a channel, channels first.
void winograd_weights(const WinogradWeightsArgs& args, int64_t begin, int64_t end) {
  const int64_t outputs = args.gradient ? args.in : args.out;
  const int64_t channels = args.gradient ? args.out : args.in;
  const int64_t output_step = args.gradient ? 9 : args.in * 9;
  const int64_t channel_step = args.gradient ? args.in * 9 : 9;
  const int64_t part = (outputs + kPanel - 1) / kPanel * channels * kPanel;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row / channels * kPanel, channel = row % channels;
    alignas(64) float taps[9][kPanel] = {};
    for (int64_t i = 0; i < kPanel && first + i < outputs; ++i) {
      const float* const from = args.weight + (first + i) * output_step + channel * channel_step;
      const int64_t filter = args.gradient ? channel : first + i;
      const float scale = args.scale ? args.scale[filter] : 1;
      for (int tap = 0; tap < 9; ++tap) taps[args.gradient ? 8 - tap : tap][i] = from[tap] * scale;
    }
    for (int64_t i = 0; i < kPanel; i += kLanes<float>) {
      Floats g[9], columns[18], rows[6];
      for (int tap = 0; tap < 9; ++tap) g[tap] = load(taps[tap] + i);
      for (int j = 0; j < 3; ++j) transform_taps(g + j, 3, columns + j, 3);
      for (int k = 0; k < 6; ++k) {
        transform_taps(columns + 3 * k, 1, rows, 1);
        for (int j = 0; j < 6; ++j) {
          float* const to = args.weights + (6 * k + j) * part + row * kPanel + i;
          store(to, bit_cast<Ints>(rows[j]));
        }
      }
    }
  }
}

FASTADV_NAMESPACE_END
