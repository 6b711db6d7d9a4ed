// Runs a grid on fibers. Threads switch at barriers and shuffles alone, in one of three orders, so
// a missing barrier shows in the result of one of them; and ThreadSanitizer is told of every fiber
// and every barrier, so that it reports each pair of accesses that nothing orders, in any schedule.
// Compiled without -fsanitize=thread itself: its own bookkeeping is no thread's.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "shim.h"

#if defined(FASTADV_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
constexpr unsigned kNoOrder = 1;  // a switch is no synchronisation
#endif
#if defined(FASTADV_ASAN)
extern "C" {
void __asan_poison_memory_region(const void*, size_t);
void __asan_unpoison_memory_region(const void*, size_t);
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}
#endif

namespace shim {
namespace {

constexpr size_t kStack = 64 * 1024, kShared = 48 * 1024;
constexpr unsigned kWarp = 32;

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  char* stack;
  State state = State::kReady;
  uint64_t value = 0;  // what a shuffle shows the other lanes
  void* tsan = nullptr;
  void* asan = nullptr;
};

// A block's shared memory. It is kept until the grid ends: to reuse it would order the blocks.
struct Arena {
  char* memory = static_cast<char*>(std::aligned_alloc(128, kShared));
  size_t used = 0;
  std::map<const void*, char*> arrays;
  Arena() {
    std::fill_n(reinterpret_cast<uint32_t*>(memory), kShared / 4, 0x7fc0deadu);  // NaN
#if defined(FASTADV_ASAN)
    __asan_poison_memory_region(memory, kShared);
#endif
  }
  ~Arena() {
#if defined(FASTADV_ASAN)
    __asan_unpoison_memory_region(memory, kShared);
#endif
    std::free(memory);
  }
};

struct Grid {
  std::vector<Fiber> fibers;
  std::vector<std::pair<char*, size_t>> stacks;
  std::vector<char> warps;  // one object a warp, for ThreadSanitizer's edges
  std::vector<std::unique_ptr<Arena>> arenas;
  const std::function<void()>* body = nullptr;
  unsigned thread = 0, block = 0, blocks = 0;
  char at_barrier = 0, at_exit = 0;
  ucontext_t scheduler;
  void *tsan = nullptr, *asan = nullptr;
  const void* stack = nullptr;
  size_t stack_size = 0;
  Order order = Order::kForward;
  std::mt19937 random;
} grid;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "shim: %s (block %u)\n", what, grid.block);
  std::abort();
}

void acquire([[maybe_unused]] void* object) {
#if defined(FASTADV_TSAN)
  __tsan_acquire(object);
#endif
}
void release([[maybe_unused]] void* object) {
#if defined(FASTADV_TSAN)
  __tsan_release(object);
#endif
}

// From the current fiber to the scheduler, until it is chosen again.
void leave(State state) {
  Fiber& self = grid.fibers[grid.thread];
  self.state = state;
#if defined(FASTADV_TSAN)
  __tsan_switch_to_fiber(grid.tsan, kNoOrder);
#endif
#if defined(FASTADV_ASAN)
  __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &self.asan, grid.stack,
                                 grid.stack_size);
#endif
  swapcontext(&self.context, &grid.scheduler);
#if defined(FASTADV_ASAN)
  __sanitizer_finish_switch_fiber(self.asan, &grid.stack, &grid.stack_size);
#endif
}

void enter(unsigned thread) {
  Fiber& fiber = grid.fibers[thread];
  grid.thread = thread;
#if defined(FASTADV_ASAN)
  __sanitizer_start_switch_fiber(&grid.asan, fiber.stack, kStack);
#endif
#if defined(FASTADV_TSAN)
  __tsan_switch_to_fiber(fiber.tsan, kNoOrder);
#endif
  swapcontext(&grid.scheduler, &fiber.context);
#if defined(FASTADV_ASAN)
  __sanitizer_finish_switch_fiber(grid.asan, nullptr, nullptr);
#endif
}

void start() {
#if defined(FASTADV_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &grid.stack, &grid.stack_size);
#endif
  (*grid.body)();
  release(&grid.at_exit);
  leave(State::kDone);
}

// The stacks of a block. ThreadSanitizer's are kept until the grid ends, and never reused: they
// would look shared by the threads of two blocks.
char* new_stacks(unsigned threads) {
#if !defined(FASTADV_TSAN)
  if (!grid.stacks.empty() && grid.fibers.size() == threads) return grid.stacks.back().first;
#endif
  const size_t size = threads * kStack;
  void* const stacks = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for the fibers' stacks");
  grid.stacks.emplace_back(static_cast<char*>(stacks), size);
  return grid.stacks.back().first;
}

void prepare(unsigned threads) {
  grid.arenas.push_back(std::make_unique<Arena>());
  char* const stacks = new_stacks(threads);
  grid.fibers = std::vector<Fiber>(threads);
  grid.warps.assign(threads / kWarp + 1, 0);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = grid.fibers[i];
    fiber.stack = stacks + i * kStack;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack, 0, kStack};
    fiber.context.uc_link = &grid.scheduler;
    makecontext(&fiber.context, start, 0);
#if defined(FASTADV_TSAN)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
}

std::vector<unsigned> in_order(unsigned count) {
  std::vector<unsigned> sequence(count);
  for (unsigned i = 0; i < count; ++i) sequence[i] = i;
  if (grid.order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  if (grid.order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), grid.random);
  return sequence;
}

// A warp whose lanes all wait, but those that are done, goes on; warps are independent.
void free_warps() {
  for (unsigned first = 0; first < grid.fibers.size(); first += kWarp) {
    const auto begin = grid.fibers.begin() + first;
    const auto end = grid.fibers.begin() + std::min<size_t>(first + kWarp, grid.fibers.size());
    const bool all = std::all_of(begin, end, [](const Fiber& fiber) {
      return fiber.state == State::kAtWarp || fiber.state == State::kDone;
    });
    if (!all) continue;
    for (auto fiber = begin; fiber != end; ++fiber) {
      if (fiber->state == State::kAtWarp) fiber->state = State::kReady;
    }
  }
}

size_t count(State state) {
  return std::count_if(grid.fibers.begin(), grid.fibers.end(),
                       [=](const Fiber& fiber) { return fiber.state == state; });
}

void run_block(unsigned threads) {
  prepare(threads);
  while (count(State::kDone) < threads) {
    for (const unsigned thread : in_order(threads)) {
      if (grid.fibers[thread].state == State::kReady) enter(thread);
    }
    free_warps();
    if (count(State::kReady) > 0 || count(State::kDone) == threads) continue;
    if (count(State::kAtBarrier) < threads) fail("not every thread reaches the barrier");
    for (Fiber& fiber : grid.fibers) fiber.state = State::kReady;
  }
#if defined(FASTADV_TSAN)
  for (Fiber& fiber : grid.fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
}

}  // namespace

Index thread_index() { return {grid.thread}; }
Index block_index() { return {grid.block}; }
Index grid_size() { return {grid.blocks}; }

void* shared(const void* key, size_t bytes) {
  Arena& arena = *grid.arenas.back();
  char*& at = arena.arrays[key];
  if (at) return at;
  at = arena.memory + arena.used;
  arena.used += (bytes + 127) / 64 * 64;  // at least 64 bytes between two arrays, poisoned
  if (arena.used > kShared) fail("more than 48 KiB of shared memory");
#if defined(FASTADV_ASAN)
  __asan_unpoison_memory_region(at, bytes);
#endif
  return at;
}

void barrier() {
  release(&grid.at_barrier);
  leave(State::kAtBarrier);
  acquire(&grid.at_barrier);
}

void warp_barrier() {
  const unsigned warp = grid.thread / kWarp;
  release(&grid.warps[warp]);
  leave(State::kAtWarp);
  acquire(&grid.warps[warp]);
}

uint64_t from_lane(uint64_t value, unsigned lane) {
  const unsigned source = grid.thread / kWarp * kWarp + lane;
  grid.fibers[grid.thread].value = value;
  leave(State::kAtWarp);  // a shuffle orders no memory, on a device too
  if (source >= grid.fibers.size() || grid.fibers[source].state == State::kDone) {
    fail("a shuffle reads a lane that is not there");
  }
  const uint64_t got = grid.fibers[source].value;
  leave(State::kAtWarp);
  return got;
}

void set_schedule(Order order, unsigned seed) {
  grid.order = order;
  grid.random.seed(seed);
}

void run(int64_t blocks, int threads, const std::function<void()>& body) {
#if defined(FASTADV_TSAN)
  grid.tsan = __tsan_get_current_fiber();
#endif
  release(&grid.at_exit);
  grid.body = &body;
  grid.blocks = unsigned(blocks);
  for (const unsigned block : in_order(unsigned(blocks))) {
    grid.block = block;
    run_block(unsigned(threads));
  }
  acquire(&grid.at_exit);
  grid.arenas.clear();
  for (const auto& [stacks, size] : grid.stacks) munmap(stacks, size);
  grid.stacks.clear();
  grid.fibers.clear();
}

}  // namespace shim
