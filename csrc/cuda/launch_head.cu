// Launches head.cuh: a warp a row that it can hold, else a block a row.
#include <stdexcept>

#include "head.cuh"
#include "launch.cuh"

namespace fastadv::cuda {
namespace {

template <class T>
constexpr int kHeldLogits = 1024 / 32 / kLanes<T>;  // vectors of a thread: 1024 logits a warp
constexpr int kRowThreads = 512;                    // of a block that reads a longer row twice

template <Head kHead, bool kTargeted, class T>
void run(const HeadArgs& args, Stream stream) {
  const bool aligned = are_aligned(args.logits, args.grad) &&
                       ((kHead != kBinaryCrossEntropy && kHead != kKl) || are_aligned(args.y));
  if (most_vectors<T>(args.samples, args.classes, aligned) <= 32 * kHeldLogits<T>) {
    launch(head<kHead, kTargeted, T, 32, kHeldLogits<T>>, "head",
           blocks_for(args.samples, kHeadThreads / 32), kHeadThreads, stream, args, aligned);
  } else {
    launch(head<kHead, kTargeted, T, kRowThreads, 0>, "head", args.samples, kRowThreads, stream,
           args, aligned);
  }
}

template <class T>
void run(Head head, const HeadArgs& args, Stream stream) {
  if (head == kCrossEntropy) run<kCrossEntropy, false, T>(args, stream);
  if (head == kBinaryCrossEntropy) run<kBinaryCrossEntropy, false, T>(args, stream);
  if (head == kMargin) run<kMargin, false, T>(args, stream);
  if (head == kDlr && !args.targeted) run<kDlr, false, T>(args, stream);
  if (head == kDlr && args.targeted) run<kDlr, true, T>(args, stream);
  if (head == kKl) run<kKl, false, T>(args, stream);
}

}  // namespace

void run_head(Head head, DType dtype, const HeadArgs& args, void* stream) {
  if (args.samples == 0) return;
  if (args.classes >= kNoClass) throw std::runtime_error("head: fewer than 2^31 - 1 classes");
  with_dtype(dtype, [&](auto type) {
    run<typename decltype(type)::type>(head, args, static_cast<Stream>(stream));
  });
}

}  // namespace fastadv::cuda
