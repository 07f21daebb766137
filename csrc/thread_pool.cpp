#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <time.h>
#endif

namespace pocketlm {

namespace {

// Some tens of microseconds: longer than the gap between two kernels of a step, shorter than a time slice.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
bool spin_until(const Condition& condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    pause();
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread)
    threads_.emplace_back([this, thread] { worker(thread); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_there_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::optional<double> ThreadPool::cpu_seconds() {
#if defined(__linux__)
  double total = 0.0;
  for (std::thread& thread : threads_) {
    clockid_t clock;
    timespec used;
    if (pthread_getcpuclockid(thread.native_handle(), &clock) != 0 || clock_gettime(clock, &used) != 0)
      return std::nullopt;
    total += static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
  }
  return total;
#else
  return threads_.empty() ? std::optional<double>(0.0) : std::nullopt;
#endif
}

void ThreadPool::run_shared(int num_tasks, Call call, const void* context) {
  call_ = call;
  context_ = context;
  num_tasks_ = num_tasks;
  unfinished_ = num_tasks;
  untaken_ = num_tasks;  // from here on tasks can be taken
  // A sleeper counts itself before it looks at untaken_, so one of the two sees the other.
  if (num_asleep_ > 0) {
    {
      std::lock_guard lock(mutex_);
    }
    work_there_.notify_all();
  }
  work_until_used_up(0);
  const auto done = [this] { return unfinished_ == 0; };
  if (spin_until(done)) return;
  std::unique_lock lock(mutex_);
  caller_asleep_ = true;
  all_done_.wait(lock, done);
  caller_asleep_ = false;
}

void ThreadPool::work_until_used_up(int thread) {
  for (;;) {
    const int64_t left = untaken_.fetch_sub(1);
    if (left <= 0) return;
    call_(context_, static_cast<int>(num_tasks_ - left), thread);
    if (unfinished_.fetch_sub(1) == 1 && caller_asleep_) {
      {
        std::lock_guard lock(mutex_);
      }
      all_done_.notify_one();
    }
  }
}

void ThreadPool::worker(int thread) {
  const auto work_or_stop = [this] { return untaken_ > 0 || stop_; };
  while (!stop_) {
    if (!spin_until(work_or_stop)) {
      std::unique_lock lock(mutex_);
      ++num_asleep_;
      work_there_.wait(lock, work_or_stop);
      --num_asleep_;
    }
    work_until_used_up(thread);
  }
}

}  // namespace pocketlm
