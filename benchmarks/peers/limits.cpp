// What the machine can do at most: g++ -O3 -march=native -pthread limits.cpp; ./a.out THREADS MIB...
//
// Prints JSON: bytes read per second out of buffers of so many MiB, and multiply-adds per second in
// registers by number format (those that this processor multiplies natively, and int8, which AVX2 multiplies
// in 16 bits; where it has AMX, bfloat16 and int8 on its tiles). Best of a few tries.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES
#endif

namespace {

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64, NUM_CHAINS = 24;  // enough to hide the latency, few enough for the registers
#else
constexpr int VECTOR_BYTES = 32, NUM_CHAINS = 12;
#endif
constexpr int NUM_TRIES = 5, LINE = 64, AHEAD = 4096, PIECE = 1 << 18;  // bytes
constexpr int NUM_PIECES = 32;  // for each thread, of steps
constexpr long NUM_STEPS = 12'500;

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES)));

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The least seconds in which all pieces were done. A thread takes the next one that is left, as those of the
// engine do: with equal parts, all would wait for the one whose core has the busier neighbour.
double best_s(int num_threads, int num_pieces, const std::function<void(int)>& piece) {
    double best = 1e9;
    for (int i = 0; i < NUM_TRIES; i++) {
        double start = now_s();
        std::atomic<int> next = 0;
        const auto work = [&] {
            for (int p = next++; p < num_pieces; p = next++) piece(p);
        };
        std::vector<std::thread> threads;
        for (int t = 1; t < num_threads; t++) threads.emplace_back(work);
        work();
        for (std::thread& thread : threads) thread.join();
        best = std::min(best, now_s() - start);
    }
    return best;
}

double read_speed(int num_threads, size_t num_bytes) {
    int num_pieces = static_cast<int>(num_bytes / PIECE);
    std::vector<uint8_t> buffer(num_bytes + LINE);
    std::fill(buffer.begin(), buffer.end(), 1);
    const uint8_t* start = buffer.data() + (LINE - reinterpret_cast<uintptr_t>(buffer.data()) % LINE) % LINE;
    double seconds = best_s(num_threads, num_pieces, [=](int piece) {
        const uint8_t* data = start + static_cast<size_t>(piece) * PIECE;
        Words sums[4] = {};
        for (size_t i = 0; i < PIECE; i += 4 * VECTOR_BYTES) {
            for (int j = 0; j < 4 * VECTOR_BYTES; j += LINE) __builtin_prefetch(data + i + j + AHEAD);
            for (int j = 0; j < 4; j++) sums[j] += *reinterpret_cast<const Words*>(data + i + j * VECTOR_BYTES);
        }
        for (Words& sum : sums) asm volatile("" : : "m"(sum));
    });
    return static_cast<double>(num_pieces) * PIECE / seconds;
}

// `step` adds the products of two registers to a third.
template <typename Vector, Vector (*step)(Vector, Vector, Vector)>
double multiply_speed(int num_threads, int multiply_adds) {
    double seconds = best_s(num_threads, num_threads * NUM_PIECES, [=](int) {
        Vector sums[NUM_CHAINS] = {}, a = {}, b = {};
        // The empty assembly keeps the compiler from finding all chains equal, and from dropping them.
#pragma GCC unroll 24
        for (int j = 0; j < NUM_CHAINS; j++) asm volatile("" : "+v"(sums[j]));
        for (long i = 0; i < NUM_STEPS; i++) {
            asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 24
            for (int j = 0; j < NUM_CHAINS; j++) sums[j] = step(sums[j], a, b);
        }
#pragma GCC unroll 24
        for (int j = 0; j < NUM_CHAINS; j++) asm volatile("" : "+v"(sums[j]));
    });
    return static_cast<double>(num_threads) * NUM_PIECES * NUM_STEPS * NUM_CHAINS * multiply_adds / seconds;
}

Floats float32(Floats sum, Floats a, Floats b) { return sum + a * b; }

// Assembly, as GCC 12 copies the sums of the intrinsics to and fro.
[[maybe_unused]] Floats bfloat16(Floats sum, Floats a, Floats b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#if defined(__AVX512VNNI__)
constexpr int INT8_MULTIPLY_ADDS = VECTOR_BYTES;
Ints int8(Ints sum, Ints a, Ints b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#elif defined(__AVXVNNI__)
constexpr int INT8_MULTIPLY_ADDS = VECTOR_BYTES;
Ints int8(Ints sum, Ints a, Ints b) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}
#elif defined(__AVX2__)
constexpr int INT8_MULTIPLY_ADDS = VECTOR_BYTES / 2;
Ints int8(Ints sum, Ints a, Ints b) {
    Ints products;  // equal in all chains: volatile, or the compiler would make them once
    asm volatile("vpmaddwd %2, %1, %0" : "=x"(products) : "x"(a), "x"(b));
    return sum + products;
}
#endif

#if defined(HAS_TILES)
struct alignas(64) TileShapes {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t num_rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes TILE_SHAPES;

bool may_use_tiles() {
    constexpr int ASK_FOR_COMPONENT = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ASK_FOR_COMPONENT, TILE_DATA) == 0;
}

// `step` adds the products of two tiles, 4 and 5, to each of the tiles 0 to 3.
template <void (*step)()>
double tile_speed(int num_threads, int multiply_adds) {
    constexpr int NUM_SUMS = 4;
    double seconds = best_s(num_threads, num_threads * NUM_PIECES, [=](int) {
        _tile_loadconfig(&TILE_SHAPES);
        for (long i = 0; i < NUM_STEPS; i++) step();
        _tile_release();
    });
    return static_cast<double>(num_threads) * NUM_PIECES * NUM_STEPS * NUM_SUMS * multiply_adds / seconds;
}

void tiles_of_int8() {
    _tile_dpbsud(0, 4, 5);
    _tile_dpbsud(1, 4, 5);
    _tile_dpbsud(2, 4, 5);
    _tile_dpbsud(3, 4, 5);
}
void tiles_of_bfloat16() {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
}
#endif

}  // namespace

int main(int num_arguments, char** arguments) {
    int num_threads = std::atoi(arguments[1]);
    std::printf("{\"bytes_per_s\": {");
    for (int i = 2; i < num_arguments; i++) {
        double speed = read_speed(num_threads, std::strtoull(arguments[i], nullptr, 10) << 20);
        std::printf("%s\"%s\": %.4g", i > 2 ? ", " : "", arguments[i], speed);
    }
    double speed = multiply_speed<Floats, float32>(num_threads, VECTOR_BYTES / 4);
    std::printf("}, \"multiply_adds_per_s\": {\"float32\": %.4g", speed);
#ifdef HAS_TILES
    if (may_use_tiles()) {
        speed = tile_speed<tiles_of_bfloat16>(num_threads, 16 * 16 * 32);
        std::printf(", \"bfloat16\": %.4g", speed);
        speed = tile_speed<tiles_of_int8>(num_threads, 16 * 16 * 64);
        std::printf(", \"int8\": %.4g}}\n", speed);
        return 0;
    }
#endif
#ifdef __AVX512BF16__
    speed = multiply_speed<Floats, bfloat16>(num_threads, VECTOR_BYTES / 2);
    std::printf(", \"bfloat16\": %.4g", speed);
#endif
#ifdef __AVX2__
    speed = multiply_speed<Ints, int8>(num_threads, INT8_MULTIPLY_ADDS);
    std::printf(", \"int8\": %.4g", speed);
#endif
    std::printf("}}\n");
}
