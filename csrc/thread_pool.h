// Threads that share small pieces of work and meet when all are done.
//
// Each thread begins with an equal share of consecutive tasks, whose data lie side by side, and takes them
// in order; when it has none left it takes the last ones of the others. So a thread that the system has put
// aside holds up the others by one task, not by its share. Who waits spins for some microseconds, then
// sleeps.
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

  // Tasks [begin, end) of one thread that nobody has taken yet, as begin << 32 | end.
  struct alignas(64) Share {
    std::atomic<uint64_t> tasks{0};

    void give(uint32_t begin, uint32_t end);
    std::optional<int> take_first();
    std::optional<int> take_last();
  };

  // Written by run() while no task is left, read only by threads that hold a task.
  Call call_ = nullptr;
  const void* context_ = nullptr;

  std::vector<Share> shares_;           // one a thread
  std::atomic<int64_t> num_runs_{0};    // counted up when a run's tasks can be taken
  std::atomic<int64_t> unfinished_{0};  // tasks not yet reported as done
  std::atomic<bool> stop_{false};

  std::mutex mutex_;
  std::condition_variable work_there_, all_done_;
  std::atomic<int> num_asleep_{0};
  std::atomic<bool> caller_asleep_{false};
  std::vector<std::thread> threads_;
};

}  // namespace pocketlm
