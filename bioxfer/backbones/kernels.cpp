// Attention, norms, GELU and a convolution over neighbours for packed protein sequences.
//
// What a linear layer leaves over: everything here is bound by memory or by exp(), reads its input once
// and writes its output once. Matrix products stay with torch. Python reaches these functions through
// ctypes (kernels.py), which checks every shape; each call runs on the thread that made it.
//
// Code is generic over the vector width W and the type M of the matrices, and compiled for each
// instruction set; bx_isa() says which this processor can run. A row's result depends on that row alone
// (in attention: on its sequence), bit for bit, wherever it lies.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
#define BX_X86 1
#if defined(__linux__) && __GNUC__ >= 11
#define BX_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define BX_MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define BX_MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, Vec<4>::i{i, j, k, l})
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

using bf16 = uint16_t;

template <int W>
struct Vec {
    typedef float f __attribute__((vector_size(W * 4)));
    typedef int32_t i __attribute__((vector_size(W * 4)));
    typedef uint32_t u __attribute__((vector_size(W * 4)));
    typedef uint16_t h __attribute__((vector_size(W * 2)));
};

// ---- loads and stores ---------------------------------------------------------------------------

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, bf16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

// By memcpy, which compiles to one move: a vector may lie anywhere, whatever type stored it.
template <int W>
INLINE typename Vec<W>::f load(const float* from) {
    typename Vec<W>::f x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
template <int W>
INLINE typename Vec<W>::f load(const bf16* from) {
    typename Vec<W>::h half;
    std::memcpy(&half, from, sizeof half);
    return (typename Vec<W>::f)(__builtin_convertvector(half, typename Vec<W>::u) << 16);
}
template <int W>
INLINE void store(const typename Vec<W>::f& x, float* to) {
    std::memcpy(to, &x, sizeof x);
}
template <int W>
INLINE void store(const typename Vec<W>::f& x, bf16* to) {
    auto bits = (typename Vec<W>::u)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto half = __builtin_convertvector(bits, typename Vec<W>::h);
    std::memcpy(to, &half, sizeof half);
}
template <int W>
INLINE typename Vec<W>::f spread(float x) {
    typename Vec<W>::f y = {};
    return y + x;
}
template <int W>
INLINE float total(typename Vec<W>::f x) {
    float sum = 0;
    for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

// ---- exp2 and GELU ------------------------------------------------------------------------------

// 2^x for x <= 0 or so: 2^round(x) by the exponent's bits, the rest by a minimax polynomial (Lawson's
// algorithm; relative error 7.5e-8 at degree 5, 7.5e-5 at degree 3, which bf16 rounds away).
template <int W, bool EXACT>
INLINE typename Vec<W>::f exp2v(typename Vec<W>::f x) {
    using vf = typename Vec<W>::f;
    using vi = typename Vec<W>::i;
    const vf least = spread<W>(-100.0f);  // products stay clear of slow denormal numbers
    x = least > x ? least : x;            // a NaN passes
    const float magic = 12582912.0f;           // 1.5 * 2^23: its last bit weighs 1
    vf t = x + magic;
    vf f = x - (t - magic);
    vf p;
    if (EXACT)
        p = ((((1.3276472454890609e-3f * f + 9.675541892647743e-3f) * f + 5.550713092088699e-2f) * f +
              2.4022120237350464e-1f) * f + 6.931469440460205e-1f) * f + 1.0f;
    else
        p = ((5.51716685295105e-2f * f + 2.426111251115799e-1f) * f + 6.932609677314758e-1f) * f +
            9.999280571937561e-1f;
    return (vf)((vi)p + ((vi)t << 23));
}

// GELU with the normal distribution itself, not its tanh look-alike: x Phi(x) = max(x, 0) - |x| Phi(-|x|),
// and Phi(-a) = exp(-a^2 / 2) R(a), where R is entire and a polynomial does on [0, 6]
// (absolute error of the product 5e-8 at degree 11, 1e-5 at degree 6).
template <int W, bool EXACT>
INLINE typename Vec<W>::f gelu(typename Vec<W>::f x) {
    using vf = typename Vec<W>::f;
    vf a = x < 0.0f ? -x : x;
    const vf end = spread<W>(6.0f);
    a = end < a ? end : a;
    vf r;
    if (EXACT)
        r = ((((((((((-1.7929485807144374e-7f * a + 4.837826509174192e-6f) * a - 5.887395309400745e-5f) * a +
                    4.3251021998003125e-4f) * a - 2.1791497711092234e-3f) * a + 8.175589144229889e-3f) * a -
                 2.4390337988734245e-2f) * a + 6.102493032813072e-2f) * a - 1.3235081732273102e-1f) * a +
              2.4984391033649445e-1f) * a - 3.98923397064209e-1f) * a + 4.999992549419403e-1f;
    else
        r = (((((3.992352867498994e-4f * a - 5.329693201929331e-3f) * a + 3.0619410797953606e-2f) * a -
               1.0272402316331863e-1f) * a + 2.3367662727832794e-1f) * a - 3.946758508682251e-1f) * a +
            4.9962177872657776e-1f;
    vf tail = a * r * exp2v<W, EXACT>(a * a * -0.72134752044448170f);  // -log2(e) / 2
    return (x < 0.0f ? spread<W>(0.0f) : x) - tail;
}

// ---- rows ---------------------------------------------------------------------------------------

// x += change + bias (if there is a change), then its layer norm into `out`.
template <int W, typename M, typename O>
INLINE void add_norm(float* x, const M* change, const float* bias, const float* gain, const float* shift,
                     O* out, int64_t rows, int64_t width, float epsilon) {
    using vf = typename Vec<W>::f;
    const int64_t whole = width / W * W;
    for (int64_t row = 0; row < rows; row++, x += width, out += width) {
        vf sums = {};
        float rest = 0;
        for (int64_t i = 0; i < whole; i += W) {
            vf v = load<W>(x + i);
            if (change) {
                v += load<W>(change + i) + load<W>(bias + i);
                store<W>(v, x + i);
            }
            sums += v;
        }
        for (int64_t i = whole; i < width; i++) {
            if (change) x[i] += widen(change[i]) + bias[i];
            rest += x[i];
        }
        const float mean = (total<W>(sums) + rest) / width;
        sums = vf{};
        rest = 0;
        for (int64_t i = 0; i < whole; i += W) {
            vf v = load<W>(x + i) - mean;
            sums += v * v;
        }
        for (int64_t i = whole; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
        const float scale = 1.0f / std::sqrt((total<W>(sums) + rest) / width + epsilon);
        for (int64_t i = 0; i < whole; i += W)
            store<W>((load<W>(x + i) - mean) * scale * load<W>(gain + i) + load<W>(shift + i), out + i);
        for (int64_t i = whole; i < width; i++) narrow((x[i] - mean) * scale * gain[i] + shift[i], out + i);
        if (change) change += width;
    }
}

template <int W, typename M>
INLINE void bias_gelu(M* x, const float* bias, int64_t rows, int64_t width) {
    constexpr bool exact = sizeof(M) == 4;
    const int64_t whole = width / W * W;
    for (int64_t row = 0; row < rows; row++, x += width) {
        for (int64_t i = 0; i < whole; i += W)
            store<W>(gelu<W, exact>(load<W>(x + i) + load<W>(bias + i)), x + i);
        for (int64_t i = whole; i < width; i++) {
            auto v = spread<W>(widen(x[i]) + bias[i]);
            narrow(gelu<W, exact>(v)[0], x + i);
        }
    }
}

// out[t] = x[t] + sum over taps of weight[tap] * x[t + tap - kernel / 2], inside each sequence; then GELU.
template <int W, typename M>
INLINE void convolve(const M* x, const float* weight, const int64_t* starts, int64_t sequences, int64_t width,
                     int64_t kernel, int activate, M* out) {
    using vf = typename Vec<W>::f;
    constexpr bool exact = sizeof(M) == 4;
    const int64_t reach = kernel / 2;
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
            const int64_t first = t - reach < starts[s] ? starts[s] - t + reach : 0;
            const int64_t last = t + reach >= starts[s + 1] ? starts[s + 1] - t + reach : kernel;
            for (int64_t i = 0; i < width; i += W) {
                vf v = load<W>(x + t * width + i);
                for (int64_t tap = first; tap < last; tap++)
                    v += load<W>(weight + tap * width + i) * load<W>(x + (t + tap - reach) * width + i);
                store<W>(activate ? gelu<W, exact>(v) : v, out + t * width + i);
            }
        }
}

// ---- attention ----------------------------------------------------------------------------------

// Softmax attention of every sequence over itself, for the heads from first_head to last_head.
struct Attention {
    const float* bias;      // (3 * heads * width), or null
    const float* cosines;   // (positions, width / 2), or null where nothing is to be rotated
    const float* sines;
    const int64_t* starts;  // (sequences + 1)
    int64_t sequences, heads, first_head, last_head;
    float scale;
};

constexpr float LOG2_E = 1.4426950408889634f;

// One head's vector of one token: bias, rotation (halves against each other), scale.
template <int WIDTH, typename M>
INLINE void fetch(const M* from, const float* bias, const float* cosine, const float* sine, float scale,
                  float* to) {
    constexpr int half = WIDTH / 2;
    constexpr int V = half % 16 == 0 ? 16 : half % 8 == 0 ? 8 : 4;
    for (int i = 0; i < half; i += V) {
        auto a = load<V>(from + i), b = load<V>(from + half + i);
        if (bias) {
            a += load<V>(bias + i);
            b += load<V>(bias + half + i);
        }
        if (cosine) {
            const auto c = load<V>(cosine + i), s = load<V>(sine + i);
            const auto turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
        store<V>(a * scale, to + i);
        store<V>(b * scale, to + half + i);
    }
}

template <int WIDTH, typename M>
INLINE void narrow_row(const float* from, M* to) {
    constexpr int V = WIDTH % 16 == 0 ? 16 : 8;
    for (int i = 0; i < WIDTH; i += V) store<V>(load<V>(from + i), to + i);
}

// (ROWS, COLUMNS) numbers of 32 bits to (COLUMNS, ROWS), in squares of four.
template <int ROWS, int COLUMNS>
INLINE void transpose(const float* from, float* to) {
    using v4 = Vec<4>::f;
    for (int r = 0; r < ROWS; r += 4)
        for (int c = 0; c < COLUMNS; c += 4) {
            v4 row[4];
            for (int i = 0; i < 4; i++) row[i] = load<4>(from + (r + i) * COLUMNS + c);
            const v4 a = BX_MIX(row[0], row[1], 0, 4, 1, 5), b = BX_MIX(row[2], row[3], 0, 4, 1, 5);
            const v4 d = BX_MIX(row[0], row[1], 2, 6, 3, 7), e = BX_MIX(row[2], row[3], 2, 6, 3, 7);
            store<4>(BX_MIX(a, b, 0, 1, 4, 5), to + (c + 0) * ROWS + r);
            store<4>(BX_MIX(a, b, 2, 3, 6, 7), to + (c + 1) * ROWS + r);
            store<4>(BX_MIX(d, e, 0, 1, 4, 5), to + (c + 2) * ROWS + r);
            store<4>(BX_MIX(d, e, 2, 3, 6, 7), to + (c + 3) * ROWS + r);
        }
}

// A lane is a query: scores, maxima, sums and outputs of W queries stand side by side, and keys and values
// are spread over the lanes number by number. Nothing is ever summed across lanes, so narrow heads lose
// nothing. Keys come in blocks, whose scores stay in the first-level cache (Milakov & Gimelshein 2018,
// arXiv:1805.02867, for the running maximum).
template <int W, int WIDTH, typename M>
INLINE void attend(const M* qkv, const Attention& job, M* out, float* scratch) {
    using vf = typename Vec<W>::f;
    constexpr bool exact = sizeof(M) == 4;
    constexpr int64_t block = 128;
    constexpr int64_t at_once = 8;
    constexpr int64_t width = WIDTH;
    const int64_t stride = 3 * job.heads * width;
    const int64_t half = width / 2;
    vf scores[block], query[WIDTH], sum[WIDTH];
    alignas(64) float rows[W * WIDTH], columns[WIDTH * W];
    for (int64_t s = 0; s < job.sequences; s++) {
        const int64_t start = job.starts[s], length = job.starts[s + 1] - start;
        float* keys = scratch;
        float* values = scratch + length * width;
        for (int64_t head = job.first_head; head < job.last_head; head++) {
            const M* q = qkv + start * stride + head * width;
            const M* k = q + job.heads * width;
            const M* v = k + job.heads * width;
            const float* bq = job.bias ? job.bias + head * width : nullptr;
            const float* bk = bq ? bq + job.heads * width : nullptr;
            const float* bv = bk ? bk + job.heads * width : nullptr;
            for (int64_t t = 0; t < length; t++) {
                const float* cosine = job.cosines ? job.cosines + t * half : nullptr;
                const float* sine = job.cosines ? job.sines + t * half : nullptr;
                fetch<WIDTH>(k + t * stride, bk, cosine, sine, 1.0f, keys + t * width);
                fetch<WIDTH>(v + t * stride, bv, nullptr, nullptr, 1.0f, values + t * width);
            }
            for (int64_t q0 = 0; q0 < length; q0 += W) {
                const int64_t lanes = length - q0 < W ? length - q0 : W;
                for (int64_t lane = 0; lane < W; lane++) {
                    const int64_t t = q0 + (lane < lanes ? lane : 0);
                    fetch<WIDTH>(q + t * stride, bq, job.cosines ? job.cosines + t * half : nullptr,
                                 job.cosines ? job.sines + t * half : nullptr, job.scale * LOG2_E,
                                 rows + lane * width);
                }
                transpose<W, WIDTH>(rows, columns);
                for (int64_t d = 0; d < width; d++) query[d] = load<W>(columns + d * W);
                vf most = spread<W>(-INFINITY);
                vf weights = {};
                for (int64_t d = 0; d < width; d++) sum[d] = vf{};
                for (int64_t k0 = 0; k0 < length; k0 += block) {
                    const int64_t count = length - k0 < block ? length - k0 : block;
                    const float* key = keys + k0 * width;
                    vf top = most;
                    int64_t j = 0;
                    for (; j + at_once <= count; j += at_once) {
                        vf part[at_once] = {};
#pragma GCC unroll 4
                        for (int64_t d = 0; d < width; d++)
                            for (int64_t i = 0; i < at_once; i++) part[i] += query[d] * key[(j + i) * width + d];
                        for (int64_t i = 0; i < at_once; i++) {
                            scores[j + i] = part[i];
                            top = part[i] > top ? part[i] : top;
                        }
                    }
                    for (; j < count; j++) {
                        vf part = {};
                        for (int64_t d = 0; d < width; d++) part += query[d] * key[j * width + d];
                        scores[j] = part;
                        top = part > top ? part : top;
                    }
                    const vf shrink = exp2v<W, exact>(most - top);  // 2^-100 at first, of a sum of nothing
                    most = top;
                    weights *= shrink;
                    vf more = {};
                    for (j = 0; j + 2 <= count; j += 2) {
                        scores[j] = exp2v<W, exact>(scores[j] - most);
                        scores[j + 1] = exp2v<W, exact>(scores[j + 1] - most);
                        weights += scores[j];
                        more += scores[j + 1];
                    }
                    if (j < count) weights += scores[j] = exp2v<W, exact>(scores[j] - most);
                    weights += more;
                    const float* value = values + k0 * width;
                    constexpr int64_t deep = WIDTH % 16 == 0 && W == 16 ? 16 : 8;
                    for (int64_t d0 = 0; d0 < width; d0 += deep) {
                        vf part[deep];
                        for (int64_t i = 0; i < deep; i++) part[i] = sum[d0 + i] * shrink;
                        for (j = 0; j < count; j++) {
                            const vf p = scores[j];
                            for (int64_t i = 0; i < deep; i++) part[i] += p * value[j * width + d0 + i];
                        }
                        for (int64_t i = 0; i < deep; i++) sum[d0 + i] = part[i];
                    }
                }
                const vf factor = 1.0f / weights;
                for (int64_t d = 0; d < width; d++) store<W>(sum[d] * factor, columns + d * W);
                transpose<WIDTH, W>(columns, rows);
                for (int64_t lane = 0; lane < lanes; lane++)
                    narrow_row<WIDTH>(rows + lane * width, out + ((start + q0 + lane) * job.heads + head) * width);
            }
        }
    }
}

template <int W, typename M>
INLINE bool attend_any(const M* qkv, const Attention& job, int64_t width, M* out, float* scratch) {
    switch (width) {
        case 8: attend<W, 8>(qkv, job, out, scratch); return true;
        case 16: attend<W, 16>(qkv, job, out, scratch); return true;
        case 24: attend<W, 24>(qkv, job, out, scratch); return true;
        case 32: attend<W, 32>(qkv, job, out, scratch); return true;
        case 64: attend<W, 64>(qkv, job, out, scratch); return true;
        case 128: attend<W, 128>(qkv, job, out, scratch); return true;
        default: return false;
    }
}

#ifdef BX_AMX
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

bool amx_allowed() {
    // Linux lends a process the tile registers only on request (Documentation/arch/x86/xstate.rst).
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
}

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Some compilers do not know that loading a tile reads memory; what was stored before must be there.
#define BX_STORED __asm__ volatile("" ::: "memory")

// Two keys of 16 queries side by side, as the tile unit wants them: bf16 of a below, of b above.
AMX INLINE __m512i pair_up(__m512 a, __m512 b) {
    const __m512i round = _mm512_set1_epi32(0x8000), low = _mm512_set1_epi32(0xffff);
    const __m512i below = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), round), 16);
    return _mm512_ternarylogic_epi32(low, below, _mm512_add_epi32(_mm512_castps_si512(b), round), 0xca);
}

// The same with both products on the tile unit: 16 keys by 16 queries of scores in one instruction for
// each 32 dimensions. Lanes are queries here too. Dimensions are filled up with zeros to a multiple of
// 32 (keys, queries) or 16 (values), and keys to a multiple of 32.
template <int WIDTH>
AMX void attend_amx(const bf16* qkv, const Attention& job, bf16* out, bf16* scratch) {
    constexpr int64_t block = 256;
    constexpr int64_t width = WIDTH, half = WIDTH / 2;
    constexpr int64_t deep = (WIDTH + 31) / 32 * 32, tall = (WIDTH + 15) / 16 * 16;
    const int64_t stride = 3 * job.heads * width;
    const __m512 scale = _mm512_set1_ps(job.scale * LOG2_E);  // of scores, so that queries are rounded once
    alignas(64) float scores[block * 16];
    alignas(64) bf16 weights[block * 16];
    alignas(64) bf16 query[deep * 16];
    alignas(64) bf16 lines[16 * deep];
    alignas(64) float sum[tall * 16];
    alignas(64) float rows[16 * WIDTH];
    alignas(64) float columns[WIDTH * 16];
    const TileConfig config;
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
    std::memset(lines, 0, sizeof lines);
    for (int64_t s = 0; s < job.sequences; s++) {
        const int64_t start = job.starts[s], length = job.starts[s + 1] - start;
        const int64_t filled = (length + 31) / 32 * 32;
        bf16* keys = scratch;                    // (filled, deep)
        bf16* values = scratch + filled * deep;  // (tall, filled)
        std::memset(keys, 0, sizeof(bf16) * filled * (deep + tall));
        for (int64_t head = job.first_head; head < job.last_head; head++) {
            const bf16* q = qkv + start * stride + head * width;
            const bf16* k = q + job.heads * width;
            const bf16* v = k + job.heads * width;
            const float* bq = job.bias ? job.bias + head * width : nullptr;
            const float* bk = bq ? bq + job.heads * width : nullptr;
            const float* bv = bk ? bk + job.heads * width : nullptr;
            for (int64_t t0 = 0; t0 < length; t0 += 16) {
                const int64_t tokens = length - t0 < 16 ? length - t0 : 16;
                for (int64_t t = t0; t < t0 + tokens; t++) {
                    fetch<WIDTH>(k + t * stride, bk, job.cosines ? job.cosines + t * half : nullptr,
                                 job.cosines ? job.sines + t * half : nullptr, 1.0f, rows);
                    narrow_row<WIDTH>(rows, keys + t * deep);
                }
                for (int64_t i = 0; i < 16; i++)
                    if (i < tokens)
                        fetch<WIDTH>(v + (t0 + i) * stride, bv, nullptr, nullptr, 1.0f, rows + i * width);
                    else
                        std::memset(rows + i * width, 0, sizeof(float) * width);
                transpose<16, WIDTH>(rows, columns);
                for (int64_t d = 0; d < width; d++) narrow_row<16>(columns + d * 16, values + d * filled + t0);
            }
            for (int64_t q0 = 0; q0 < length; q0 += 16) {
                const int64_t lanes = length - q0 < 16 ? length - q0 : 16;
                for (int64_t lane = 0; lane < 16; lane++) {
                    const int64_t t = q0 + (lane < lanes ? lane : 0);
                    fetch<WIDTH>(q + t * stride, bq, job.cosines ? job.cosines + t * half : nullptr,
                                 job.cosines ? job.sines + t * half : nullptr, 1.0f, rows);
                    narrow_row<WIDTH>(rows, lines + lane * deep);
                }
                transpose<16, deep / 2>((const float*)lines, (float*)query);  // two dimensions stay together
                __m512 most = _mm512_set1_ps(-INFINITY), norm = _mm512_setzero_ps();
                std::memset(sum, 0, sizeof sum);
                for (int64_t k0 = 0; k0 < length; k0 += block) {
                    const int64_t count = length - k0 < block ? length - k0 : block;
                    const int64_t whole = (count + 31) / 32 * 32;
                    BX_STORED;
                    for (int64_t j = 0; j < whole; j += 32) {
                        _tile_zero(2);
                        _tile_zero(3);
                        for (int64_t d = 0; d < deep; d += 32) {
                            _tile_loadd(0, query + d * 16, 64);
                            _tile_loadd(4, keys + (k0 + j) * deep + d, deep * 2);
                            _tile_dpbf16ps(2, 4, 0);
                            _tile_loadd(5, keys + (k0 + j + 16) * deep + d, deep * 2);
                            _tile_dpbf16ps(3, 5, 0);
                        }
                        _tile_stored(2, scores + j * 16, 64);
                        _tile_stored(3, scores + (j + 16) * 16, 64);
                    }
                    __m512 top = _mm512_set1_ps(-INFINITY), other = top;
                    int64_t j = 0;
                    for (; j + 2 <= count; j += 2) {
                        top = _mm512_max_ps(_mm512_load_ps(scores + j * 16), top);
                        other = _mm512_max_ps(_mm512_load_ps(scores + j * 16 + 16), other);
                    }
                    if (j < count) top = _mm512_max_ps(_mm512_load_ps(scores + j * 16), top);
                    top = _mm512_max_ps(_mm512_mul_ps(_mm512_max_ps(top, other), scale), most);
                    const __m512 shrink = exp2v<16, false>(_mm512_sub_ps(most, top));
                    most = top;
                    norm = _mm512_mul_ps(norm, shrink);
                    if (k0)
                        for (int64_t d = 0; d < tall; d++)
                            _mm512_store_ps(sum + d * 16, _mm512_mul_ps(_mm512_load_ps(sum + d * 16), shrink));
                    __m512 more = _mm512_setzero_ps();
                    for (j = 0; j + 2 <= count; j += 2) {
                        const __m512 a = exp2v<16, false>(_mm512_load_ps(scores + j * 16) * scale - most);
                        const __m512 b = exp2v<16, false>(_mm512_load_ps(scores + j * 16 + 16) * scale - most);
                        norm = _mm512_add_ps(norm, a);
                        more = _mm512_add_ps(more, b);
                        _mm512_store_si512(weights + j * 16, pair_up(a, b));
                    }
                    if (j < count) {
                        const __m512 a = exp2v<16, false>(_mm512_load_ps(scores + j * 16) * scale - most);
                        norm = _mm512_add_ps(norm, a);
                        _mm512_store_si512(weights + j * 16, pair_up(a, _mm512_setzero_ps()));
                        j += 2;
                    }
                    for (; j < whole; j += 2) _mm512_store_si512(weights + j * 16, _mm512_setzero_si512());
                    norm = _mm512_add_ps(norm, more);
                    BX_STORED;
                    for (int64_t d = 0; d < tall; d += 16) {
                        _tile_loadd(2, sum + d * 16, 64);
                        for (j = 0; j < whole; j += 32) {
                            _tile_loadd(4, values + d * filled + k0 + j, filled * 2);
                            _tile_loadd(0, weights + j * 16, 64);
                            _tile_dpbf16ps(2, 4, 0);
                        }
                        _tile_stored(2, sum + d * 16, 64);
                    }
                }
                const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), norm);
                for (int64_t d = 0; d < width; d++)
                    _mm512_store_ps(sum + d * 16, _mm512_mul_ps(_mm512_load_ps(sum + d * 16), factor));
                transpose<WIDTH, 16>(sum, rows);
                for (int64_t lane = 0; lane < lanes; lane++)
                    narrow_row<WIDTH>(rows + lane * width, out + ((start + q0 + lane) * job.heads + head) * width);
            }
        }
    }
    _tile_release();
}

// ---- products -----------------------------------------------------------------------------------

// A float32 is the sum of three bf16 (3 x 8 bits of 24): the first three of what is left, each time rounded.
AMX INLINE void split(__m512 x, bf16* to, int64_t step) {
    for (int part = 0; part < 3; part++) {
        const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
        _mm256_storeu_si256((__m256i*)(to + part * step), half);
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
    }
}

// (n, k) weights to (n / 16, k / 32, 3) tiles of 16 pairs of dimensions by 16 outputs.
AMX void pack_weights(const float* w, int64_t n, int64_t k, bf16* out) {
    for (int64_t n0 = 0; n0 < n; n0 += 16)
        for (int64_t k0 = 0; k0 < k; k0 += 32, out += 3 * 512)
            for (int64_t j = 0; j < 16; j++)
                for (int64_t i = 0; i < 32; i += 16) {
                    alignas(64) bf16 parts[3 * 16];
                    split(_mm512_loadu_ps(w + (n0 + j) * k + k0 + i), parts, 16);
                    for (int64_t part = 0; part < 3; part++)
                        for (int64_t d = 0; d < 16; d++)
                            out[part * 512 + (i + d) / 2 * 32 + j * 2 + d % 2] = parts[part * 16 + d];
                }
}

// y (rows, n) = x (rows, k) times packed weights, in the precision of float32 on the tile unit: of the nine
// products of parts, the six that reach the 24 bits, the largest one last (Henry et al. 2019,
// arXiv:1904.06376). 170 operations a cycle against 64 of AVX-512. Rows and n are multiples of 32.
AMX bool multiply(const float* x, const bf16* w, float* y, int64_t rows, int64_t k, int64_t n) {
    constexpr int64_t tall = 128, deep = 512;  // what is split at once stays in the second-level cache
    bf16* split_up = (bf16*)std::aligned_alloc(64, tall * deep * 3 * sizeof(bf16));
    if (!split_up) return false;
    const TileConfig config;
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
    for (int64_t r0 = 0; r0 < rows; r0 += tall) {
        const int64_t high = rows - r0 < tall ? rows - r0 : tall;
        for (int64_t k0 = 0; k0 < k; k0 += deep) {
            const int64_t steps = (k - k0 < deep ? k - k0 : deep) / 32;
            for (int64_t r = 0; r < high; r++)  // to (high / 32, steps, 3, 2) tiles of 16 rows by 32 dimensions
                for (int64_t step = 0; step < steps; step++) {
                    bf16* to = split_up + (r / 32 * steps + step) * 6 * 512 + r / 16 % 2 * 512 + r % 16 * 32;
                    const float* from = x + (r0 + r) * k + k0 + step * 32;
                    split(_mm512_loadu_ps(from), to, 1024);
                    split(_mm512_loadu_ps(from + 16), to + 16, 1024);
                }
            BX_STORED;
            for (int64_t n0 = 0; n0 < n; n0 += 32) {
                const bf16* left = w + (n0 / 16 * (k / 32) + k0 / 32) * 3 * 512;
                const bf16* right = left + k / 32 * 3 * 512;
                for (int64_t r = 0; r < high; r += 32) {
                    const bf16* a = split_up + r / 32 * steps * 6 * 512;
                    float* to = y + (r0 + r) * n + n0;
                    if (k0) {
                        _tile_loadd(0, to, n * 4);
                        _tile_loadd(1, to + 16, n * 4);
                        _tile_loadd(2, to + 16 * n, n * 4);
                        _tile_loadd(3, to + 16 * n + 16, n * 4);
                    } else {
                        _tile_zero(0);
                        _tile_zero(1);
                        _tile_zero(2);
                        _tile_zero(3);
                    }
                    for (int64_t step = 0; step < steps; step++, a += 6 * 512) {
                        const bf16 *b = left + step * 3 * 512, *c = right + step * 3 * 512;
#define BX_ROWS(part) _tile_loadd(4, a + (part) * 1024, 64); _tile_loadd(5, a + (part) * 1024 + 512, 64)
#define BX_COLUMNS(part) _tile_loadd(6, b + (part) * 512, 64); _tile_loadd(7, c + (part) * 512, 64)
#define BX_MULTIPLY                                                                                          \
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7)
                        BX_ROWS(2); BX_COLUMNS(0); BX_MULTIPLY;
                        BX_ROWS(1); BX_MULTIPLY;
                        BX_COLUMNS(1); BX_MULTIPLY;
                        BX_ROWS(0); BX_MULTIPLY;
                        BX_COLUMNS(2); BX_MULTIPLY;
                        BX_COLUMNS(0); BX_MULTIPLY;
                    }
                    _tile_stored(0, to, n * 4);
                    _tile_stored(1, to + 16, n * 4);
                    _tile_stored(2, to + 16 * n, n * 4);
                    _tile_stored(3, to + 16 * n + 16, n * 4);
                }
            }
        }
    }
    _tile_release();
    std::free(split_up);
    return true;
}
#endif

}  // namespace

// Each function for each instruction set. Null pointers where the comments above allow them.
#define BX_EXPORT(NAME, TARGET, W)                                                                           \
    TARGET static void NAME##_norm(int half, int half_out, float* x, const void* change, const float* bias,  \
                                   const float* gain, const float* shift, void* out, int64_t rows,           \
                                   int64_t width, float epsilon) {                                           \
        if (half && half_out)                                                                                \
            add_norm<W>(x, (const bf16*)change, bias, gain, shift, (bf16*)out, rows, width, epsilon);        \
        else if (half)                                                                                       \
            add_norm<W>(x, (const bf16*)change, bias, gain, shift, (float*)out, rows, width, epsilon);       \
        else if (half_out)                                                                                   \
            add_norm<W>(x, (const float*)change, bias, gain, shift, (bf16*)out, rows, width, epsilon);       \
        else                                                                                                 \
            add_norm<W>(x, (const float*)change, bias, gain, shift, (float*)out, rows, width, epsilon);      \
    }                                                                                                        \
    TARGET static void NAME##_gelu(int half, void* x, const float* bias, int64_t rows, int64_t width) {      \
        if (half)                                                                                            \
            bias_gelu<W>((bf16*)x, bias, rows, width);                                                       \
        else                                                                                                 \
            bias_gelu<W>((float*)x, bias, rows, width);                                                      \
    }                                                                                                        \
    TARGET static void NAME##_convolve(int half, const void* x, const float* weight, const int64_t* starts,  \
                                       int64_t sequences, int64_t width, int64_t kernel, int activate,       \
                                       void* out) {                                                          \
        if (half)                                                                                            \
            convolve<W>((const bf16*)x, weight, starts, sequences, width, kernel, activate, (bf16*)out);     \
        else                                                                                                 \
            convolve<W>((const float*)x, weight, starts, sequences, width, kernel, activate, (float*)out);   \
    }                                                                                                        \
    TARGET static void NAME##_attend(int half, const void* qkv, const Attention& job, int64_t width,         \
                                     void* out, void* scratch) {                                             \
        if (half)                                                                                            \
            attend_any<W>((const bf16*)qkv, job, width, (bf16*)out, (float*)scratch);                        \
        else                                                                                                 \
            attend_any<W>((const float*)qkv, job, width, (float*)out, (float*)scratch);                      \
    }

BX_EXPORT(plain, , 4)
#ifdef BX_X86
BX_EXPORT(avx2, __attribute__((target("avx2,fma"))), 8)
BX_EXPORT(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))), 16)
#define BX_CALL(isa, NAME, ...)                                                                              \
    (isa >= 2 ? avx512_##NAME(__VA_ARGS__) : isa == 1 ? avx2_##NAME(__VA_ARGS__) : plain_##NAME(__VA_ARGS__))
#else
#define BX_CALL(isa, NAME, ...) plain_##NAME(__VA_ARGS__)
#endif

extern "C" {

// To be raised with every change of a signature or a layout, here and in kernels.py.
int bx_version() { return 1; }

// 0 plain, 1 AVX2, 2 AVX-512, 3 AVX-512 and tiles.
int bx_isa() {
#ifdef BX_X86
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
        return 1;
#ifdef BX_AMX
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
    if (tiles && __builtin_cpu_supports("avx512bf16") && amx_allowed()) return 3;
#endif
    return 2;
#else
    return 0;
#endif
}

void bx_norm(int isa, int half, int half_out, float* x, const void* change, const float* bias,
             const float* gain, const float* shift, void* out, int64_t rows, int64_t width, float epsilon) {
    BX_CALL(isa, norm, half, half_out, x, change, bias, gain, shift, out, rows, width, epsilon);
}

void bx_gelu(int isa, int half, void* x, const float* bias, int64_t rows, int64_t width) {
    BX_CALL(isa, gelu, half, x, bias, rows, width);
}

void bx_convolve(int isa, int half, const void* x, const float* weight, const int64_t* starts,
                 int64_t sequences, int64_t width, int64_t kernel, int activate, void* out) {
    BX_CALL(isa, convolve, half, x, weight, starts, sequences, width, kernel, activate, out);
}

// 0, or -1 if there was no memory.
int bx_attend(int isa, int half, const void* qkv, const float* bias, const float* cosines, const float* sines,
              const int64_t* starts, int64_t sequences, int64_t heads, int64_t first_head, int64_t last_head,
              int64_t width, float scale, void* out) {
    int64_t longest = 0;
    for (int64_t s = 0; s < sequences; s++)
        if (starts[s + 1] - starts[s] > longest) longest = starts[s + 1] - starts[s];
    // Keys and values of one head, as float32 or as filled-up bf16; the larger of the two.
    const size_t bytes = size_t((longest + 31) / 32 * 32) * ((width + 31) / 32 * 32) * 2 * sizeof(float);
    void* scratch = std::aligned_alloc(64, bytes);
    if (!scratch) return -1;
    const Attention job{bias, cosines, sines, starts, sequences, heads, first_head, last_head, scale};
#ifdef BX_AMX
    if (isa >= 3 && half) {
        const bf16* from = (const bf16*)qkv;
        bf16 *to = (bf16*)out, *room = (bf16*)scratch;
        switch (width) {
            case 8: attend_amx<8>(from, job, to, room); break;
            case 16: attend_amx<16>(from, job, to, room); break;
            case 24: attend_amx<24>(from, job, to, room); break;
            case 32: attend_amx<32>(from, job, to, room); break;
            case 64: attend_amx<64>(from, job, to, room); break;
            case 128: attend_amx<128>(from, job, to, room); break;
        }
    } else
#endif
        BX_CALL(isa, attend, half, qkv, job, width, out, scratch);
    std::free(scratch);
    return 0;
}

// What bx_product wants instead of float32 weights (n, k), k and n being multiples of 32; 3 n k bf16.
// Only where bx_isa() is 3.
void bx_pack(const float* weights, int64_t n, int64_t k, void* out) {
#ifdef BX_AMX
    pack_weights(weights, n, k, (bf16*)out);
#endif
}

// 0, or -1 if there was no memory. Only where bx_isa() is 3.
int bx_product(const float* x, const void* weights, float* out, int64_t rows, int64_t k, int64_t n) {
#ifdef BX_AMX
    return multiply(x, (const bf16*)weights, out, rows, k, n) ? 0 : -1;
#else
    return -1;
#endif
}
}
