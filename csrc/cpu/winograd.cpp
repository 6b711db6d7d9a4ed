// y = activation(conv3x3(x) + bias + residual), or a gradient times an activation's slopes, by
// Winograd's transforms: 36 multiplications where the convolution has 144, with a stride of 2 it
// is 81.
//
// A task takes a block of tiles: it transforms their patches of x, multiplies them by the weights
// (a product a part, gemm.h), and transforms the products into y, adding all that follows a
// convolution in registers. y is written once, 4 B an element, and x read 2.25 times (with a stride
// 1.3, its gradient 1.6), from the cache but for the first.
// Measured on one core of an EPYC 9004 with AVX-512, 32 images: 290 GFLOP/s with 64 channels, 360
// with 256, with a stride 140 to 165, counted as the direct convolution's, for which oneDNN reaches
// 110, the core's peak. 72% of that time are products with 64 channels, 97% with 512.
#include "declare.h"
#include "epilogue.h"
#include "gemm.h"
#include "sweep.h"
#include "winograd_transform.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

// The parts of 16 channels stand together, of 32 in bfloat16: a transform writes, and reads, 2304 B
// in a row, or 5184.
template <class Form>
constexpr int64_t kGroup = Form::kParts * Form::kParts * kPanel;

struct Tile {
  int64_t sample, row, column;  // of its first output
  int64_t top, left;            // of its patch
};

template <class Form>
struct Geometry {
  int64_t down, across, tiles;  // tiles: in a column of y, in a row, in all
  int64_t panels, chunks;       // of outputs
  int64_t depth;                // channels, or pairs of them
  int64_t patch, product;       // floats of a tile's transforms
  int64_t offset;               // of the patches: pixels before the image

  explicit Geometry(const WinogradArgs& args)
      : down((args.rows + Form::kTile - 1) / Form::kTile),
        across((args.columns + Form::kTile - 1) / Form::kTile),
        tiles(args.samples * down * across),
        panels((args.outputs + kPanel - 1) / kPanel),
        chunks((panels + args.panels - 1) / args.panels),
        depth(args.bfloat16 ? (args.channels + 1) / 2 : args.channels),
        patch((depth + kPanel - 1) / kPanel * kGroup<Form>),
        product((panels < args.panels ? panels : args.panels) * kGroup<Form>),
        offset(args.form == kStridedGradient ? 0 : args.padding) {}

  FASTADV_FN Tile tile(int64_t index) const {
    const int64_t i = index / across % down, j = index % across;
    return {index / (down * across), i * Form::kTile, j * Form::kTile, i * Form::kStep - offset,
            j * Form::kStep - offset};
  }
};

template <class Form, class Products>
void read_patches(const WinogradArgs& args, const Geometry<Form>& g, int64_t first, int64_t count,
                  const float* zeros, float* patches) {
  constexpr int P = Form::kPatch;
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = g.tile(first + t);
    const float* pixels[P * P];
    for (int i = 0; i < P * P; ++i) {
      const int64_t row = tile.top + i / P, column = tile.left + i % P;
      const bool inside = row >= 0 && row < args.height && column >= 0 && column < args.width;
      const int64_t pixel = (tile.sample * args.height + row) * args.width + column;
      pixels[i] = inside ? args.x + pixel * args.channels : zeros;
    }
    float* const to = patches + t * g.patch;
    each_register<float>(args.channels, [&](int64_t c, auto... n) {
      transform_patch<Form>(
          [&](int i) { return load(pixels[i] + c, n...); },
          [&](int part, Floats v) { Products::put(to + part * kPanel, kGroup<Form>, c, v); });
    });
  }
}

template <class Form>
void write_tiles(const WinogradArgs& args, const Geometry<Form>& g, int64_t first, int64_t count,
                 int64_t panel, const float* products) {
  const int64_t begin = panel * kPanel;
  const int64_t most = begin + args.panels * kPanel;
  const int64_t end = most < args.outputs ? most : args.outputs;
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = g.tile(first + t);
    const int64_t corner = (tile.sample * args.rows + tile.row) * args.columns + tile.column;
    const int64_t rows = args.rows - tile.row, columns = args.columns - tile.column;
    const float* const from = products + t * g.product;
    each_register<float>(end - begin, [&](int64_t i, auto... n) {
      const int64_t k = begin + i;
      const Floats bias = args.bias ? load(args.bias + k, n...) : Floats{};
      const float* const parts = from + i / kPanel * kGroup<Form> + i % kPanel;
      transform_tile<Form>(parts, kPanel, [&](int row, int column, Floats v) {
        if (row >= rows || column >= columns) return;
        finish(args, corner + row * args.columns + column, k, v + bias, n...);
      });
    });
    if (!is_stored_raw(args.after)) continue;
    for (int64_t i = 0; i < Form::kTile && i < rows; ++i) {
      for (int64_t j = 0; j < Form::kTile && j < columns; ++j) {
        const int64_t pixel = corner + i * args.columns + j;
        activate_stored(args.after, args.y, args.outputs, pixel, begin, end);
      }
    }
  }
}

// Task i is chunk i % chunks of the outputs of block i / chunks.
template <class Form, class Products>
void convolve(const WinogradArgs& args, int64_t begin, int64_t end) {
  const Geometry<Form> g(args);
  const int64_t width = (args.channels + kPanel - 1) / kPanel * kPanel;
  float* const zeros = workspace(width + args.tiles * (g.patch + g.product));
  float* const patches = zeros + width;
  float* const products = patches + args.tiles * g.patch;
  memset(zeros, 0, width * sizeof(float));
  int64_t transformed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / g.chunks, panel = task % g.chunks * args.panels;
    const int64_t first = block * args.tiles;
    const int64_t count = first + args.tiles < g.tiles ? args.tiles : g.tiles - first;
    const int64_t panels = panel + args.panels < g.panels ? args.panels : g.panels - panel;
    if (block != transformed) read_patches<Form, Products>(args, g, first, count, zeros, patches);
    transformed = block;
    for (int part = 0; part < Form::kParts * Form::kParts; ++part) {
      const int weight = weight_of(part / Form::kParts, part % Form::kParts);
      const float* const weights = args.weights + (weight * g.panels + panel) * g.depth * kPanel;
      multiply<Products>({patches + part * kPanel, g.patch, weights, products + part * kPanel,
                          g.product, kGroup<Form>, g.depth},
                         count, panels);
    }
    write_tiles<Form>(args, g, first, count, panel, products);
  }
}

template <class Products>
void convolve(const WinogradArgs& args, int64_t begin, int64_t end) {
  if (args.form == kPlain) return convolve<Plain, Products>(args, begin, end);
  if (args.form == kStrided) return convolve<Strided, Products>(args, begin, end);
  convolve<StridedGradient, Products>(args, begin, end);
}

void winograd(const WinogradArgs& args, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (args.bfloat16) return convolve<Pairs>(args, begin, end);
#endif
  convolve<Singles>(args, begin, end);
}

FASTADV_NAMESPACE_END
