// Runs one op of csrc/cuda on the CPU, under the shim: every argument is name=value, every array a
// file of raw bytes, which is read, and written again after the run.
//
//   driver op=step norm=1 dtype=0 samples=3 size=75 ... x_adv=file grad=file x=file
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/run.h"
#include "shim.h"

// A build may hold the launchers of some ops only.
namespace fastadv::cuda {
#define FASTADV_MAYBE(name) extern __attribute__((weak)) decltype(name) name;
FASTADV_MAYBE(run_step_linf)
FASTADV_MAYBE(run_step_l2)
FASTADV_MAYBE(run_step_l1)
FASTADV_MAYBE(universal_workspace)
FASTADV_MAYBE(run_universal)
FASTADV_MAYBE(run_head)
FASTADV_MAYBE(run_digest)
FASTADV_MAYBE(run_uniform)
}  // namespace fastadv::cuda

namespace {

using namespace fastadv;

struct Array {
  void* memory;
  char* at;
  int64_t size;
};

class Request {
 public:
  Request(int count, char** words) {
    for (int i = 1; i < count; ++i) {
      const std::string word = words[i];
      values_[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
    }
  }
  ~Request() {
    for (const auto& [name, array] : arrays_) std::free(array.memory);
  }
  std::string text(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::runtime_error("missing: " + name);
    return found->second;
  }
  int64_t integer(const std::string& name) const { return std::stoll(text(name)); }
  double real(const std::string& name) const { return std::stod(text(name)); }

  // The array `name`, or null. It ends where its memory ends, and begins `shift` bytes after an
  // address that 16 divides.
  char* array(const std::string& name) {
    if (!values_.count(name)) return nullptr;
    std::ifstream file(text(name), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const int64_t shift = values_.count("shift") ? integer("shift") : 0;
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes.size() + shift) != 0) throw std::bad_alloc();
    char* const at = static_cast<char*>(memory) + shift;
    std::copy(bytes.begin(), bytes.end(), at);
    arrays_[name] = {memory, at, int64_t(bytes.size())};
    return at;
  }
  void write_back() const {
    for (const auto& [name, array] : arrays_) {
      std::ofstream(text(name), std::ios::binary).write(array.at, array.size);
    }
  }

 private:
  std::map<std::string, std::string> values_;
  std::map<std::string, Array> arrays_;
};

StepArgs step_of(Request& request) {
  Box box;
  if (char* const lower = request.array("lower")) {
    box = {lower, request.array("upper"), request.integer("channels"), request.integer("inner")};
  }
  return {request.array("x_adv"),
          request.array("grad"),
          request.array("x"),
          request.integer("samples"),
          request.integer("size"),
          {request.array("step_size"), request.integer("step_stride")},
          {request.array("radius"), request.integer("radius_stride")},
          box,
          request.integer("steepest") != 0,
          request.real("top")};
}

void run_universal(Request& request, Norm norm, DType dtype) {
  const UniversalArgs args{
      request.array("delta"),          request.array("velocity"),        request.array("grads"),
      request.array("weights"),        request.integer("samples"),       request.integer("size"),
      {request.array("step_size"), 0}, {request.array("radius"), 0},     request.real("momentum"),
      request.integer("signs") != 0,   request.integer("steepest") != 0, request.real("top")};
  void* workspace = nullptr;
  const int64_t bytes = cuda::universal_workspace(dtype, args.samples, args.size);
  if (posix_memalign(&workspace, 16, bytes) != 0) throw std::bad_alloc();
  cuda::run_universal(norm, dtype, args, workspace, nullptr);
  std::free(workspace);
}

void run(Request& request) {
  const std::string op = request.text("op");
  const DType dtype = DType(request.integer("dtype"));
  const Norm norm = Norm(op == "step" || op == "universal" ? request.integer("norm") : 0);
  if (op == "step") {
    const auto step = norm == kLinf ? cuda::run_step_linf
                      : norm == kL2 ? cuda::run_step_l2
                                    : cuda::run_step_l1;
    step(dtype, step_of(request), nullptr);
  } else if (op == "universal") {
    run_universal(request, norm, dtype);
  } else if (op == "head") {
    cuda::run_head(
        Head(request.integer("head")), dtype,
        {request.array("logits"), request.array("y"), request.array("target"),
         request.array("loss"), request.array("grad"), request.array("prediction"),
         request.integer("samples"), request.integer("classes"), request.integer("targeted") != 0},
        nullptr);
  } else if (op == "digest") {
    cuda::run_digest(dtype,
                     {request.array("x"), reinterpret_cast<int64_t*>(request.array("digest")),
                      request.integer("samples"), request.integer("size")},
                     nullptr);
  } else if (op == "uniform") {
    cuda::run_uniform(dtype == kFloat64,
                      {request.array("out"), request.integer("samples"), request.integer("size"),
                       uint64_t(request.integer("seed")), request.integer("offset"),
                       uint32_t(request.integer("stream"))},
                      nullptr);
  } else {
    throw std::runtime_error("unknown op: " + op);
  }
}

}  // namespace

int main(int count, char** words) try {
  Request request(count, words);
  const std::string order = request.text("order");
  shim::set_schedule(order == "forward"   ? shim::Order::kForward
                     : order == "reverse" ? shim::Order::kReverse
                                          : shim::Order::kRandom,
                     1);
  run(request);
  request.write_back();
} catch (const std::exception& error) {
  std::fprintf(stderr, "driver: %s\n", error.what());
  return 2;
}
