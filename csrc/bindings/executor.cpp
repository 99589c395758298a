#include "bindings/executor.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/comm.h"
#include "bindings/plan.h"
#include "model/executor.h"

namespace py = pybind11;

namespace oarlock {
namespace {

struct SourceKind {
  SourceFormat format;
  const char* dtype;  // numpy's name for the array it arrives in
  int block, bytes;   // elements and bytes of one unit along k
};

const std::map<std::string, SourceKind> kSources = {
    {"f32", {SourceFormat::f32, "float32", 1, 4}},   {"f16", {SourceFormat::f16, "float16", 1, 2}},
    {"bf16", {SourceFormat::bf16, "uint16", 1, 2}},  {"q8_0", {SourceFormat::q8_0, "uint8", 32, 34}},
    {"q4_0", {SourceFormat::q4_0, "uint8", 32, 18}}, {"q4_1", {SourceFormat::q4_1, "uint8", 32, 20}},
};

const std::map<std::string, WeightFormat> kFormats = {
    {"keep", WeightFormat::keep}, {"f32", WeightFormat::f32},   {"f16", WeightFormat::f16},
    {"bf16", WeightFormat::bf16}, {"int8", WeightFormat::int8}, {"int4", WeightFormat::int4},
};

template <typename Value>
const Value& look_up(const std::map<std::string, Value>& table, const char* what, const std::string& name) {
  auto found = table.find(name);
  if (found != table.end()) return found->second;
  std::string names;
  for (const auto& entry : table) names += (names.empty() ? "" : ", ") + entry.first;
  throw InvalidArgument(concat(what, " '", name, "' is not one of ", names));
}

WeightPiece read_piece(const std::string& name, const std::string& format, const py::array& array) {
  const SourceKind& kind = look_up(kSources, "source format", format);
  require(py::str(array.dtype()).cast<std::string>() == kind.dtype, name, ": ", format, " arrives as ", kind.dtype, ", not ",
          std::string(py::str(array.dtype())));
  require((array.flags() & py::array::c_style) != 0, name, ": the array must be C-contiguous");
  require(array.ndim() == 1 || array.ndim() == 2, name, ": the array must have one or two dimensions, not ", array.ndim());
  WeightPiece piece;
  piece.format = kind.format;
  piece.n = array.shape(0);
  piece.k = 1;
  if (array.ndim() == 2) {
    int64_t row_bytes = array.shape(1) * array.itemsize();
    require(row_bytes % kind.bytes == 0, name, ": a row of ", row_bytes, " bytes is not a whole number of ", format, " blocks");
    piece.k = row_bytes / kind.bytes * kind.block;
  }
  piece.data = array.data();
  return piece;
}

template <typename T>
T option(const py::dict& config, const char* key) {
  require(config.contains(key), "the executor's configuration lacks ", key);
  try {
    return config[key].cast<T>();
  } catch (const py::cast_error&) {
    throw InvalidArgument(concat("the executor's configuration: ", key, " is ", std::string(py::repr(config[key])),
                                 ", which is of the wrong type"));
  }
}

int positive(const py::dict& config, const char* key) {
  int value = option<int>(config, key);
  require(value >= 1, "the executor's configuration: ", key, " must be at least 1, not ", value);
  return value;
}

class PyExecutor {
 public:
  explicit PyExecutor(const py::dict& options) {
    ModelConfig& m = config_;
    m.layers = positive(options, "layers");
    m.hidden = positive(options, "hidden");
    m.heads = positive(options, "heads");
    m.kv_heads = positive(options, "kv_heads");
    m.head_dim = positive(options, "head_dim");
    m.ffn = positive(options, "ffn");
    m.vocab = positive(options, "vocab");
    m.norm_epsilon = option<float>(options, "norm_epsilon");
    m.attention_scale = option<float>(options, "attention_scale");
    m.qk_norm = option<bool>(options, "qk_norm");
    m.sliding_window = option<int>(options, "sliding_window");
    require(m.heads % m.kv_heads == 0, "heads (", m.heads, ") must be a multiple of kv_heads (", m.kv_heads, ")");
    Limits limits;
    limits.max_tokens = positive(options, "max_tokens");
    limits.max_sequences = positive(options, "max_sequences");
    limits.max_rows = positive(options, "max_rows");
    limits.max_blocks_per_sequence = positive(options, "max_blocks_per_sequence");
    auto rotary = option<py::array_t<float, py::array::c_style>>(options, "rotary");
    require(rotary.ndim() == 2 && rotary.shape(0) >= 1 && rotary.shape(1) == m.head_dim,
            "rotary must be float32 [max_context, head_dim]");
    limits.max_context = int(rotary.shape(0));

    std::shared_ptr<Comm> comm;
    if (options.contains("comm") && !options["comm"].is_none()) {
      comm = options["comm"].cast<std::shared_ptr<MemberComm>>();
      m.rank = comm->rank();
      m.vocab_starts = option<std::vector<int64_t>>(options, "vocab_starts");
      require(int(m.vocab_starts.size()) == comm->world() + 1 && m.vocab_starts.front() == 0 &&
                  m.vocab_starts.back() == m.vocab && std::is_sorted(m.vocab_starts.begin(), m.vocab_starts.end()),
              "vocab_starts must rise from 0 to ", m.vocab, " in ", comm->world() + 1, " numbers");
    }
    std::string device = option<std::string>(options, "device"), dtype = option<std::string>(options, "dtype");
    if (device == "cuda") {
      executor_ = make_cuda(options, limits, rotary.data(), dtype, comm);
      return;
    }
    require(device == "cpu", "device '", device, "' is not one of cpu, cuda");
    require(dtype == "bf16" || dtype == "f32", "dtype '", dtype, "' is not one of bf16, f32, which device cpu has");
    executor_ = make_cpu_executor(m, limits, rotary.data(), dtype == "f32" ? DType::f32 : DType::bf16,
                                  positive(options, "threads"), comm);
  }

  void load(const std::string& name, const std::vector<std::pair<std::string, py::array>>& pieces, const std::string& format) {
    std::vector<WeightPiece> stacked;
    for (const auto& piece : pieces) stacked.push_back(read_piece(name, piece.first, piece.second));
    WeightFormat kept = look_up(kFormats, "weight format", format);
    py::gil_scoped_release released;
    executor_->decoder().load(name, stacked, kept);
  }

  void finish(int64_t blocks) {
    {
      py::gil_scoped_release released;
      executor_->finish(blocks);
    }
    StepResult result = executor_->collect();
    py::ssize_t rows = executor_->decoder().limits().max_rows;
    py::capsule owner(this, [](void*) {});
    token_ = py::array_t<int32_t>({rows}, result.sampled.token, owner);
    logprob_ = py::array_t<float>({rows}, result.sampled.logprob, owner);
    top_ids_ = py::array_t<int32_t>({rows, py::ssize_t(kMaxTopLogprobs)}, result.sampled.top_ids, owner);
    top_logprobs_ = py::array_t<float>({rows, py::ssize_t(kMaxTopLogprobs)}, result.sampled.top_logprobs, owner);
    status_ = py::array_t<int32_t>({rows}, result.sampled.status, owner);
  }

  void submit(const py::object& step) {
    Plan plan = read_plan(step, config_);
    py::gil_scoped_release released;
    executor_->submit(plan);
  }

  // (token, logprob, top_ids, top_logprobs, status): the first rows of arrays that the next submit or collect overwrites; the
  // same tuple as before when there are as many.
  py::tuple collect() {
    StepResult result;
    {
      py::gil_scoped_release released;
      result = executor_->collect();
    }
    if (result.rows != collected_rows_) {
      py::slice rows(0, result.rows, 1);
      collected_ = py::make_tuple(token_[rows], logprob_[rows], top_ids_[rows], top_logprobs_[rows], status_[rows]);
      collected_rows_ = result.rows;
    }
    return collected_;
  }

  void beat() { lead(Order::beat); }
  void stop_followers() { lead(Order::stop); }

  // Carries out rank 0's next order: "step", "beat" or "stop".
  std::string follow() {
    py::gil_scoped_release released;
    Order order = executor_->follow();
    return order == Order::step ? "step" : order == Order::beat ? "beat" : "stop";
  }

  double exchange_seconds() const { return executor_->exchange_seconds(); }
  int64_t free_memory() const { return executor_->free_memory(); }
  uintptr_t stream() const { return reinterpret_cast<uintptr_t>(executor_->stream()); }
  int64_t weight_bytes() const { return executor_->decoder().weight_bytes(); }
  int64_t step_weight_bytes() const { return executor_->decoder().step_weight_bytes(); }
  int64_t bytes_per_block() const { return executor_->decoder().bytes_per_block(); }
  int64_t blocks() const { return executor_->decoder().blocks(); }

 private:
  void lead(Order order) {
    py::gil_scoped_release released;
    executor_->lead(order);
  }

#ifdef OARLOCK_CUDA
  std::unique_ptr<Executor> make_cuda(const py::dict& options, const Limits& limits, const float* rotary,
                                      const std::string& dtype, const std::shared_ptr<Comm>& comm) const {
    require(dtype == "bf16" || dtype == "f16", "dtype '", dtype, "' is not one of bf16, f16, which device cuda has");
    const CudaOptions cuda{dtype == "f16" ? DType::f16 : DType::bf16, option<bool>(options, "batch_invariant"),
                           option<int>(options, "device_index"),      option<std::string>(options, "nccl_library"),
                           option<double>(options, "step_limit"),     option<bool>(options, "graphs")};
    py::gil_scoped_release released;
    return make_cuda_executor(config_, limits, rotary, cuda, comm);
  }
#else
  std::unique_ptr<Executor> make_cuda(const py::dict&, const Limits&, const float*, const std::string&,
                                      const std::shared_ptr<Comm>&) const {
    throw InvalidArgument(
        "device 'cuda' is not in this build: install with -C cmake.define.OARLOCK_CUDA=ON, which needs nvcc 13 "
        "(see docs/kernels-cuda.md)");
  }
#endif

  ModelConfig config_;
  std::unique_ptr<Executor> executor_;
  py::array token_, logprob_, top_ids_, top_logprobs_, status_;
  py::tuple collected_;
  int collected_rows_ = -1;
};

}  // namespace

void bind_executor(py::module_& module) {
  py::class_<PyExecutor>(module, "Executor")
      .def(py::init<const py::dict&>(), py::arg("config"))
      .def("load", &PyExecutor::load, py::arg("name"), py::arg("pieces"), py::arg("format"))
      .def("finish", &PyExecutor::finish, py::arg("blocks"))
      .def("submit", &PyExecutor::submit, py::arg("plan"))
      .def("collect", &PyExecutor::collect)
      .def("beat", &PyExecutor::beat)
      .def("stop_followers", &PyExecutor::stop_followers)
      .def("follow", &PyExecutor::follow)
      .def_property_readonly("exchange_seconds", &PyExecutor::exchange_seconds)
      .def_property_readonly("free_memory", &PyExecutor::free_memory)
      .def_property_readonly("stream", &PyExecutor::stream)
      .def_property_readonly("weight_bytes", &PyExecutor::weight_bytes)
      .def_property_readonly("step_weight_bytes", &PyExecutor::step_weight_bytes)
      .def_property_readonly("bytes_per_block", &PyExecutor::bytes_per_block)
      .def_property_readonly("blocks", &PyExecutor::blocks);
}

}  // namespace oarlock
