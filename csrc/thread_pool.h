// Threads that take small pieces of work from a shared counter and meet when it is used up.
//
// Work is shared dynamically: a thread that the system has put aside holds up the others by one piece,
// not by its share of the whole. Who waits spins for some microseconds, then sleeps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace pocketlm {

class ThreadPool {
 public:
  // The calling thread works too, so num_threads - 1 are started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Processor time used so far by the threads started here; nothing where the system does not tell.
  std::optional<double> cpu_seconds();

  // Calls work(task, thread) for every task in [0, num_tasks), thread in [0, num_threads), and returns
  // when all are done. One run at a time. `work` must not throw.
  template <class Work>
  void run(int num_tasks, const Work& work) {
    if (num_tasks <= 1 || threads_.empty()) {
      for (int task = 0; task < num_tasks; ++task) work(task, 0);
      return;
    }
    run_shared(
        num_tasks,
        [](const void* context, int task, int thread) { (*static_cast<const Work*>(context))(task, thread); },
        &work);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);

  void run_shared(int num_tasks, Call call, const void* context);
  void work_until_used_up(int thread);
  void worker(int thread);

  // Written by run() while no task is left, read only by threads that hold a task.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int num_tasks_ = 0;

  std::atomic<int64_t> untaken_{0};     // a thread that subtracts 1 from n > 0 holds task num_tasks_ - n
  std::atomic<int64_t> unfinished_{0};  // tasks not yet done
  std::atomic<bool> stop_{false};

  std::mutex mutex_;
  std::condition_variable work_there_, all_done_;
  std::atomic<int> num_asleep_{0};
  std::atomic<bool> caller_asleep_{false};
  std::vector<std::thread> threads_;
};

}  // namespace pocketlm
