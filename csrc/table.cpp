// The table of one instruction set.
#include "dot_i8.h"

namespace pocketlm::POCKETLM_ISA {

void matmul_f32(const float*, int, const float*, int64_t, int, int, const Output&);
void matmul_bf16(const uint16_t*, int, const void*, int64_t, int, int, const Output&);
void matmul_i8(const uint8_t*, const float*, int, const QuantizedRows&, int, int, const Output&);
void matmul_i4(const uint8_t*, const float*, int, const QuantizedRows&, int, int, const Output&);
#if defined(__AVX512BF16__)
void round_bf16(const float*, int, uint16_t*);
#else
constexpr auto round_bf16 = nullptr;
#endif
void quantize(const float*, int, int8_t*, float*, int32_t*);
void widen(const int8_t*, int, int16_t*);
void sum_groups(const int8_t*, int, int32_t*);
void norm(Norm, const float*, const float*, const float*, float, int, float*);
void keep_f32(const float*, const float*, int, int, uint8_t*, uint8_t*);
void keep_f16(const float*, const float*, int, int, uint8_t*, uint8_t*);
void keep_i8(const float*, const float*, int, int, uint8_t*, uint8_t*);
void attend_f32(const Query*, int, const HeadBlocks&, int, float, float*);
void attend_f16(const Query*, int, const HeadBlocks&, int, float, float*);
void attend_i8(const Query*, int, const HeadBlocks&, int, float, float*);
Peak peak(const float*, int);
int first_above(const float*, int, int, float);
int gather(const float*, int, float, float*);
void shift_and_divide(const float*, int, float, float, float*);
void exp_above(const float*, int, float, float*, float*);

#define POCKETLM_TEXT(name) #name
#define POCKETLM_NAME(name) POCKETLM_TEXT(name)

extern const Kernels kKernels;
const Kernels kKernels = {
    .isa = POCKETLM_NAME(POCKETLM_ISA),
    .matmul_f32 = matmul_f32,
    .matmul_bf16 = matmul_bf16,
    .matmul_i8 = matmul_i8,
    .matmul_i4 = matmul_i4,
    .norm = norm,
    .round_bf16 = round_bf16,
    .quantize = quantize,
    .widen = kTakesWide ? widen : nullptr,
    .sum_groups = sum_groups,
    .attention = {{keep_f32, attend_f32}, {keep_f16, attend_f16}, {keep_i8, attend_i8}},
    .peak = peak,
    .first_above = first_above,
    .gather = gather,
    .shift_and_divide = shift_and_divide,
    .exp_above = exp_above,
};

}  // namespace pocketlm::POCKETLM_ISA
