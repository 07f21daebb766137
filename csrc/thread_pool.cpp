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
  asm volatile("isb");  // waits for some tens of cycles, as x86's pause; most processors skip a yield
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

void ThreadPool::Share::give(uint32_t begin, uint32_t end) { tasks = uint64_t{begin} << 32 | end; }

std::optional<int> ThreadPool::Share::take_first() {
  uint64_t left = tasks;
  while (left >> 32 < (left & 0xffffffff))
    if (tasks.compare_exchange_weak(left, left + (uint64_t{1} << 32))) return static_cast<int>(left >> 32);
  return std::nullopt;
}

std::optional<int> ThreadPool::Share::take_last() {
  uint64_t left = tasks;
  while (left >> 32 < (left & 0xffffffff))
    if (tasks.compare_exchange_weak(left, left - 1)) return static_cast<int>((left & 0xffffffff) - 1);
  return std::nullopt;
}

ThreadPool::ThreadPool(int num_threads) : shares_(num_threads) {
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
  unfinished_ = num_tasks;
  const int64_t num_shares = num_threads();
  for (int64_t i = 0; i < num_shares; ++i)  // from here on tasks can be taken
    shares_[i].give(static_cast<uint32_t>(num_tasks * i / num_shares),
                    static_cast<uint32_t>(num_tasks * (i + 1) / num_shares));
  ++num_runs_;
  // A sleeper counts itself before it looks at num_runs_, so one of the two sees the other.
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
  // Not a plain store: emulators of ARM let the load that follows pass it, and then nobody wakes the caller.
  caller_asleep_.exchange(true);
  all_done_.wait(lock, done);
  caller_asleep_ = false;
}

void ThreadPool::work_until_used_up(int thread) {
  int64_t num_done = 0;
  while (const auto task = shares_[thread].take_first()) {
    call_(context_, *task, thread);
    ++num_done;
  }
  for (int other = 1; other < num_threads(); ++other) {
    while (const auto task = shares_[(thread + other) % num_threads()].take_last()) {
      call_(context_, *task, thread);
      ++num_done;
    }
  }
  // Reported at once: a run is not over, and no other begins, while one of its tasks is unreported.
  if (num_done > 0 && unfinished_.fetch_sub(num_done) == num_done && caller_asleep_) {
    {
      std::lock_guard lock(mutex_);
    }
    all_done_.notify_one();
  }
}

void ThreadPool::worker(int thread) {
  int64_t num_seen = 0;
  const auto work_or_stop = [&] { return num_runs_ != num_seen || stop_; };
  while (!stop_) {
    if (!spin_until(work_or_stop)) {
      std::unique_lock lock(mutex_);
      ++num_asleep_;
      work_there_.wait(lock, work_or_stop);
      --num_asleep_;
    }
    num_seen = num_runs_;
    work_until_used_up(thread);
  }
}

}  // namespace pocketlm
