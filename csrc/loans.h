// What a forward borrows of a model, and gives back: fastadv/engine/loans.py says what and why, and
// has the same in Python.
//
// An attack's forward finds the caches full of torch's code, and a line of Python then costs
// several times what it does in a loop of its own. Lending the 6 parameters of a net of 8 modules
// took 38 us of the 290 of a gradient; as a class of pybind11's, with maps, 20; so 8, nearly all of
// them in Tensor.detach. Hence CPython's own calls, and searches through what is short, and mostly
// empty.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace fastadv::loans {

namespace py = pybind11;

struct Names {
  PyObject* modules = PyUnicode_InternFromString("_modules");
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* buffers = PyUnicode_InternFromString("_buffers");
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* detach = PyUnicode_InternFromString("detach");
  PyObject* clone = PyUnicode_InternFromString("clone");
};
inline const Names names;

inline py::object owned(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// A module's children, parameters or buffers. Borrowed, as all that is a plain pointer here.
inline PyObject* registered(PyObject* module, PyObject* name) {
  const py::object own = owned(PyObject_GenericGetDict(module, nullptr));
  PyObject* found = PyDict_GetItemWithError(own.ptr(), name);
  if (found == nullptr || !PyDict_Check(found)) {
    throw py::type_error("a model's modules must hold their parameters as torch.nn.Module does");
  }
  return found;
}

// Each of a model's modules once.
inline std::vector<PyObject*> modules_of(PyObject* model) {
  std::vector<PyObject*> found{model};
  found.reserve(32);
  for (size_t i = 0; i < found.size(); ++i) {  // it grows meanwhile
    PyObject *const children = registered(found[i], names.modules), *name, *child;
    for (Py_ssize_t at = 0; PyDict_Next(children, &at, &name, &child);) {
      if (child == Py_None || std::ranges::find(found, child) != found.end()) continue;
      found.push_back(child);
    }
  }
  return found;
}

inline bool trains(PyObject* module) {
  return PyObject_IsTrue(owned(PyObject_GetAttr(module, names.training)).ptr()) == 1;
}

// One thread at a time. torch gives the interpreter's lock away inside `detach`: who waits here
// must not hold it, or the other could not go on.
class Turn {
 public:
  Turn() {
    if (mutex.try_lock()) return;
    const py::gil_scoped_release release;
    mutex.lock();
  }
  ~Turn() { mutex.unlock(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  static inline std::mutex mutex;
};

class Loan {
 public:
  Loan(PyObject* model, PyObject* lend) : lend_(py::reinterpret_borrow<py::object>(lend)) {
    const Turn turn;
    std::vector<std::pair<py::object, bool>> places;
    places.reserve(16);
    taken_.reserve(16);
    given_.reserve(32);
    for (PyObject* module : modules_of(model)) {
      PyObject* const parameters = registered(module, names.parameters);
      PyObject* const buffers = registered(module, names.buffers);
      if (PyDict_GET_SIZE(parameters)) {
        places.emplace_back(py::reinterpret_borrow<py::object>(parameters), false);
      }
      if (PyDict_GET_SIZE(buffers) && trains(module)) {
        places.emplace_back(py::reinterpret_borrow<py::object>(buffers), true);
      }
    }
    try {
      for (const auto& [place, copied] : places) take(place, copied);
    } catch (...) {
      give_back();
      throw;
    }
    current.push_back(this);
  }

  ~Loan() {
    const Turn turn;
    std::erase(current, this);
    give_back();
  }

  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

 private:
  using Pair = std::pair<py::object, py::object>;

  void take(const py::object& place, bool copied) {
    for (const Loan* other : current) {
      const Pair* shared = other->find(other->taken_, place.ptr());
      if (shared == nullptr) continue;
      if (!lend_.equal(other->lend_)) throw std::runtime_error(kTwoPrecisions);
      taken_.push_back(*shared);
      for (const Pair& pair : other->given_) {  // once each: loans that overlap pass them on
        if (find(given_, pair.first.ptr()) == nullptr) given_.push_back(pair);
      }
      return;
    }
    taken_.emplace_back(place, owned(PyDict_Copy(place.ptr())));
    PyObject *const saved = taken_.back().second.ptr(), *name, *tensor;
    for (Py_ssize_t at = 0; PyDict_Next(saved, &at, &name, &tensor);) {
      if (tensor == Py_None) continue;
      const py::object given = copied ? copy(tensor) : instead_of(tensor);
      if (PyDict_SetItem(place.ptr(), name, given.ptr())) throw py::error_already_set();
    }
  }

  static py::object copy(PyObject* buffer) {
    const py::object alias = owned(PyObject_CallMethodNoArgs(buffer, names.detach));
    return owned(PyObject_CallMethodNoArgs(alias.ptr(), names.clone));
  }

  py::object instead_of(PyObject* parameter) {
    const Pair* tied = find(given_, parameter);
    for (const Loan* other : current) tied = tied ? tied : find(other->given_, parameter);
    if (tied) return tied->second;
    given_.emplace_back(py::reinterpret_borrow<py::object>(parameter),
                        owned(lend_.is_none() ? PyObject_CallMethodNoArgs(parameter, names.detach)
                                              : PyObject_CallOneArg(lend_.ptr(), parameter)));
    return given_.back().second;
  }

  void give_back() const {
    for (const auto& [place, saved] : taken_) {
      const bool lent = std::ranges::any_of(current, [&, at = place.ptr()](const Loan* other) {
        return find(other->taken_, at) != nullptr;
      });
      if (!lent) PyDict_Update(place.ptr(), saved.ptr());
    }
  }

  static const Pair* find(const std::vector<Pair>& pairs, PyObject* first) {
    const auto found = std::ranges::find_if(
        pairs, [first](const Pair& pair) { return pair.first.ptr() == first; });
    return found == pairs.end() ? nullptr : &*found;
  }

  static constexpr const char* kTwoPrecisions =
      "two compiled models that share this model ran in two threads at once, on copies of its "
      "weights in two precisions: let one thread run them in turn";

  static inline std::vector<const Loan*> current;
  const py::object lend_;
  std::vector<Pair> taken_;  // where, and what stood there
  std::vector<Pair> given_;  // a parameter, and what stands in its place
};

// Exceptions as CPython's.
template <typename Run>
PyObject* guarded(const Run& run) {
  try {
    return run().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline PyObject* lent(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    if (count != 4) throw py::type_error("lent takes a model, lend, run and x");
    const Loan loan(args[0], args[1]);
    return owned(PyObject_CallOneArg(args[2], args[3]));
  });
}

inline PyObject* modes_of(PyObject*, PyObject* model) {
  return guarded([model] {
    const std::vector<PyObject*> modules = modules_of(model);
    py::tuple modes(modules.size());
    for (size_t i = 0; i < modules.size(); ++i) modes[i] = py::bool_(trains(modules[i]));
    return py::object(std::move(modes));
  });
}

inline void add_to(py::module_& m) {
  static PyMethodDef methods[] = {
      {"lent", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&lent)), METH_FASTCALL,
       "run(x), while a model's parameters are lent; see fastadv/engine/loans.py."},
      {"modes_of", &modes_of, METH_O, "Of each of a model's modules, whether it trains."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}

}  // namespace fastadv::loans
