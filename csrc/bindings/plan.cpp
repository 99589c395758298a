#include "bindings/plan.h"

#include <string>

#include "base/error.h"

namespace py = pybind11;

namespace oarlock {
namespace {

template <typename T>
struct Array {
  const T* data = nullptr;
  py::ssize_t rows = 0, cols = 1;
};

// The attribute as a C-contiguous array of T with `dims` dimensions; data is null when it is None.
template <typename T>
Array<T> read(const py::object& step, const char* name, int dims = 1) {
  py::object value = step.attr(name);
  if (value.is_none()) return {};
  require(py::isinstance<py::array_t<T, py::array::c_style>>(value), name, " must be a C-contiguous array of ",
          std::string(py::str(py::dtype::of<T>())));
  auto array = py::reinterpret_borrow<py::array>(value);
  require(array.ndim() == dims, name, " must have ", dims, " dimensions, not ", array.ndim());
  return {static_cast<const T*>(array.data()), array.shape(0), dims == 2 ? array.shape(1) : 1};
}

template <typename T>
const T* read_sized(const py::object& step, const char* name, py::ssize_t rows) {
  Array<T> array = read<T>(step, name);
  require(array.data == nullptr || array.rows == rows, name, " has ", array.rows, " entries where ", rows, " are wanted");
  return array.data;
}

template <typename T>
const T* read_needed(const py::object& step, const char* name, py::ssize_t rows) {
  const T* data = read_sized<T>(step, name, rows);
  require(data != nullptr || rows == 0, name, " must not be None");
  return data;
}

Batch read_batch(const py::object& step) {
  Batch batch;
  Array<int32_t> ids = read<int32_t>(step, "token_ids"), contexts = read<int32_t>(step, "context_lens"),
                 tables = read<int32_t>(step, "block_tables", 2), rows = read<int32_t>(step, "sample_rows");
  require(ids.data && contexts.data && tables.data, "token_ids, context_lens and block_tables must not be None");
  batch.tokens = int(ids.rows);
  batch.sequences = int(contexts.rows);
  batch.rows = int(rows.rows);
  batch.token_ids = ids.data;
  batch.context_lens = contexts.data;
  batch.sample_rows = rows.data;
  batch.positions = read_needed<int32_t>(step, "positions", ids.rows);
  batch.slots = read_needed<int32_t>(step, "slots", ids.rows);
  batch.query_starts = read_needed<int32_t>(step, "query_starts", contexts.rows + 1);
  require(tables.rows == contexts.rows, "block_tables has ", tables.rows, " rows for ", contexts.rows, " sequences");
  batch.block_tables = tables.data;
  batch.block_table_stride = int(tables.cols);
  return batch;
}

}  // namespace

Plan read_plan(const py::object& step, const ModelConfig& config) {
  Plan plan;
  plan.batch = read_batch(step);
  plan.token_sources = read_sized<int32_t>(step, "token_sources", plan.batch.tokens);
  py::ssize_t rows = plan.batch.rows;
  Sampling& s = plan.sampling;
  s.temperature = read_needed<float>(step, "temperature", rows);
  s.top_p = read_needed<float>(step, "top_p", rows);
  s.min_p = read_needed<float>(step, "min_p", rows);
  s.top_k = read_needed<int32_t>(step, "top_k", rows);
  s.seed = read_needed<uint64_t>(step, "seed", rows);
  s.draw = read_needed<int32_t>(step, "draw", rows);
  s.top_logprobs = read_sized<int32_t>(step, "top_logprobs", rows);
  s.target = read_sized<int32_t>(step, "target", rows);

  s.history_starts = read_sized<int32_t>(step, "history_starts", rows + 1);
  if (s.history_starts) {
    Array<int32_t> ids = read<int32_t>(step, "history_ids");
    plan.history_entries = int(ids.rows);
    s.history_ids = ids.data;
    s.history_counts = read_needed<int32_t>(step, "history_counts", ids.rows);
    s.repetition_penalty = read_needed<float>(step, "repetition_penalty", rows);
    s.presence_penalty = read_needed<float>(step, "presence_penalty", rows);
    s.frequency_penalty = read_needed<float>(step, "frequency_penalty", rows);
  }
  s.bias_starts = read_sized<int32_t>(step, "bias_starts", rows + 1);
  if (s.bias_starts) {
    Array<int32_t> ids = read<int32_t>(step, "bias_ids");
    plan.bias_entries = int(ids.rows);
    s.bias_ids = ids.data;
    s.bias_values = read_needed<float>(step, "bias_values", ids.rows);
  }
  s.mask_rows = read_sized<int32_t>(step, "mask_rows", rows);
  if (s.mask_rows) {
    Array<uint32_t> masks = read<uint32_t>(step, "masks", 2);
    require(masks.data == nullptr || masks.cols == (config.vocab + 31) / 32, "masks are ", masks.cols, " words wide where ",
            (config.vocab + 31) / 32, " hold the vocabulary");
    plan.masks = int(masks.rows);
    s.masks = masks.data;
  }
  return plan;
}

}  // namespace oarlock
