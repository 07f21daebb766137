// An array on a cache line's boundary, zero until written.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pocketlm {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  // calloc leaves large areas to the system's zero pages: what is never written takes no memory.
  explicit Buffer(int64_t size) : size_(size), memory_(std::calloc(size * sizeof(T) + kAlignment, 1)) {
    if (!memory_) throw std::bad_alloc();
    void* start = memory_.get();
    size_t space = size * sizeof(T) + kAlignment;
    data_ = static_cast<T*>(std::align(kAlignment, size * sizeof(T), start, space));
  }

  // Room for at least `size`; what was in it is lost if it grows.
  T* at_least(int64_t size) {
    if (size > size_) *this = Buffer(size);
    return data_;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t num_bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  int64_t size_ = 0;
  std::unique_ptr<void, Free> memory_;
  T* data_ = nullptr;
};

}  // namespace pocketlm
