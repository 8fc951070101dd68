// Attention of new tokens to all tokens of their rows, in float32, on one core; see cached_attention.py.
//
// Torch's own is made for many queries. Here a key head has the few of one token, whose time is that of reading keys
// and values once, or those of a turn, for which keys are laid out in panels, as for a product of matrices.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Keys and values of row b stand in a buffer of its own, [layers, 2 G, capacity, d] with the keys first; `used` of its
// tokens are there, `count` are written behind them. Of each the last dimension is contiguous.
struct Problem {
    const float *q;      // [B, L, H, d], L is N, or 1, for the last new token of each row
    const float *k, *v;  // [B, N, G, d] of the new tokens
    float *out;          // [B, L, H, d]
    float *const *buffers;
    const int64_t *capacity, *used, *count;  // [B]
    int64_t B, H, G, L, N, d, layer;
    int64_t q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head;  // strides
    float scale;
};

template <int W> struct Vector {
    typedef float type __attribute__((vector_size(4 * W), aligned(4), may_alias));
    typedef int32_t integers __attribute__((vector_size(4 * W), aligned(4), may_alias));
};
#define VEC using vec [[maybe_unused]] = typename Vector<W>::type
#define AT(place) (*(const vec *)(place))
#define TO(place) (*(vec *)(place))

constexpr int ROWS = 6;    // queries of one head that are computed together
constexpr int AHEAD = 32;  // tokens; keys and values of those are on their way from memory

// 2^t for t <= 0, to 1e-7, and 0 for what is below any float: Taylor's series of 2^r for |r| <= 1/2.
template <int W> INLINE typename Vector<W>::type power_of_2(typename Vector<W>::type t) {
    VEC;
    using ivec = typename Vector<W>::integers;
    vec low = t < -126.0f ? vec{} - 126.0f : t;
    ivec n = __builtin_convertvector(low - 0.5f, ivec);
    vec r = (low - __builtin_convertvector(n, vec)) * 0.693147181f;
    vec p = vec{} + 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    p = p * (vec)((n + 127) << 23);
    return t < -126.0f ? vec{} : p;
}

// exp(x - max x) in place of x[n], n a multiple of W; their sum.
template <int W> INLINE float exponentials(float *x, int64_t n) {
    VEC;
    vec most = AT(x), sum = {};
    for (int64_t i = W; i < n; i += W) most = AT(x + i) > most ? AT(x + i) : most;
    float top = most[0], total = 0;
    for (int j = 1; j < W; j++) top = most[j] > top ? most[j] : top;
    _Pragma("GCC unroll 4") for (int64_t i = 0; i < n; i += W) {
        vec e = power_of_2<W>((AT(x + i) - top) * 1.442695041f);
        TO(x + i) = e;
        sum += e;
    }
    for (int j = 0; j < W; j++) total += sum[j];
    return total;
}

template <int W, int step, size_t... j>
INLINE typename Vector<W>::type halves(typename Vector<W>::type a, typename Vector<W>::type b,
                                       std::index_sequence<j...>) {
    constexpr int pair = 2 * step;
    return __builtin_shufflevector(a, b, (int(j) / pair * pair + int(j) % step + (j & step ? W : 0))...) +
           __builtin_shufflevector(a, b, (int(j) / pair * pair + int(j) % step + (j & step ? W : 0) + step)...);
}

// Makes x[0] the vector of the sums of x[0] to x[W - 1].
template <int W, int step = 1> INLINE void sums(typename Vector<W>::type *x) {
    UNROLL for (int j = 0; j < W; j += 2 * step)
        x[j] = halves<W, step>(x[j], x[j + step], std::make_index_sequence<W>{});
    if constexpr (2 * step < W) sums<W, 2 * step>(x);
}

// out[N][d] = x[N, S] v[S, d] / total[N], M vectors of d at a time
template <int W, int N, int M>
INLINE void mix(const float *x, int64_t stride, const float *v, int64_t S, int64_t d, const float *total,
                float *const *out) {
    VEC;
    for (int64_t c = 0; c < d; c += M * W) {
        vec a[N][M];
        UNROLL for (int r = 0; r < N; r++) UNROLL for (int m = 0; m < M; m++) a[r][m] = vec{};
        for (int64_t s = 0; s < S; s++) {
            const float *value = v + s * d + c;
            vec part[M];
            if (N <= 2) UNROLL for (int z = 0; z < M * W; z += 16) __builtin_prefetch(value + AHEAD * d + z);
            UNROLL for (int m = 0; m < M; m++) part[m] = AT(value + m * W);
            UNROLL for (int r = 0; r < N; r++) {
                UNROLL for (int m = 0; m < M; m++) a[r][m] += x[r * stride + s] * part[m];
            }
        }
        UNROLL for (int r = 0; r < N; r++) {
            UNROLL for (int m = 0; m < M; m++) TO(out[r] + c + m * W) = a[r][m] / total[r];
        }
    }
}

// N queries of one token, which sees S tokens, one at least.
template <int W, int N>
INLINE void one_token(const float *q, int64_t q_head, const float *k, const float *v, int64_t S, int64_t d, float scale,
                      float *out, float *x, int64_t stride) {
    VEC;
    const int64_t whole = (S + W - 1) / W * W;
    for (int64_t at = 0; at < S && S >= W; at += W) {
        const int64_t s = at + W <= S ? at : S - W;  // the last ones overlap
        for (int64_t z = 0; z < W * d; z += 16) __builtin_prefetch(k + (s + AHEAD) * d + z);
        UNROLL for (int r = 0; r < N; r++) {
            vec part[W];
            UNROLL for (int j = 0; j < W; j++) part[j] = vec{};
            for (int64_t c = 0; c < d; c += W) {
                vec a = AT(q + r * q_head + c);
                UNROLL for (int j = 0; j < W; j++) part[j] += a * AT(k + (s + j) * d + c);
            }
            sums<W>(part);
            TO(x + r * stride + s) = part[0] * scale;
        }
    }
    float total[N], *to[N];
    for (int r = 0; r < N; r++) {
        float *own = x + r * stride;
        for (int64_t s = 0; s < S && S < W; s++) {
            own[s] = 0;
            for (int64_t c = 0; c < d; c++) own[s] += q[r * q_head + c] * k[s * d + c] * scale;
        }
        for (int64_t s = S; s < whole; s++) own[s] = -INFINITY;
        total[r] = exponentials<W>(own, whole);
        to[r] = out + r * d;
    }
    mix<W, N, 32 / W>(x, stride, v, S, d, total, to);
}

// ROWS queries, of which query r sees the first ends[r] keys, of keys in panels [S / 2 W, d, 2 W].
template <int W>
INLINE void tokens(const float *const *q, const float *panels, const float *v, const int64_t *ends, int64_t d,
                   float scale, float *const *out, float *x, int64_t stride) {
    VEC;
    constexpr int P = 2 * W;
    float total[ROWS];
    int64_t last = 0;
    for (int r = 0; r < ROWS; r++) last = ends[r] > last ? ends[r] : last;
    for (int64_t s = 0; s < last; s += P) {
        const float *k = panels + s * d;
        vec a[ROWS], b[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) a[r] = b[r] = vec{};
        for (int64_t c = 0; c < d; c++) {
            vec left = AT(k + c * P), right = AT(k + c * P + W);
            UNROLL for (int r = 0; r < ROWS; r++) {
                a[r] += q[r][c] * left;
                b[r] += q[r][c] * right;
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            TO(x + r * stride + s) = a[r] * scale;
            TO(x + r * stride + s + W) = b[r] * scale;
        }
    }
    const int64_t whole = (last + P - 1) / P * P;
    for (int r = 0; r < ROWS; r++) {
        for (int64_t s = ends[r]; s < whole; s++) x[r * stride + s] = -INFINITY;
        total[r] = exponentials<W>(x + r * stride, whole);
    }
    mix<W, ROWS, 2>(x, stride, v, last, d, total, out);
}

template <int W> INLINE int attend(const Problem &p) {
    constexpr int P = 2 * W;
    const int64_t d = p.d, L = p.L, R = p.H / p.G;
    if (L != 1 && L != p.N) return 4;
    int64_t longest = 0;
    for (int64_t b = 0; b < p.B; b++) {
        const int64_t S = p.used[b] + p.count[b];
        if (S > p.capacity[b] || p.count[b] > p.N) return 3;
        longest = S > longest ? S : longest;
    }
    const int64_t stride = (longest + P - 1) / P * P;
    float *x = (float *)malloc(sizeof(float) * (L == 1 ? 2 * stride : ROWS * stride + stride * d));
    if (!x && stride) return 1;
    float *panels = L == 1 ? nullptr : x + ROWS * stride;
    for (int64_t b = 0; b < p.B; b++) {
        const int64_t before = p.used[b], count = p.count[b], S = before + count, head = p.capacity[b] * d;
        const int64_t queries = L == 1 ? (S ? 1 : 0) : count;
        for (int64_t g = 0; g < p.G; g++) {
            float *k = p.buffers[b] + (p.layer * 2 * p.G + g) * head, *v = k + p.G * head;
            for (int64_t i = 0; i < count; i++) {
                memcpy(k + (before + i) * d, p.k + b * p.k_row + i * p.k_token + g * p.k_head, sizeof(float) * d);
                memcpy(v + (before + i) * d, p.v + b * p.v_row + i * p.v_token + g * p.v_head, sizeof(float) * d);
            }
            const float *q = p.q + b * p.q_row + g * R * p.q_head;
            float *out = p.out + (b * L * p.H + g * R) * d;
            for (int64_t i = queries; i < L; i++) memset(out + i * p.H * d, 0, sizeof(float) * R * d);
            if (L == 1) {
                int64_t r = 0;
                for (; r + 2 <= R && S; r += 2)
                    one_token<W, 2>(q + r * p.q_head, p.q_head, k, v, S, d, p.scale, out + r * d, x, stride);
                if (r < R && S)
                    one_token<W, 1>(q + r * p.q_head, p.q_head, k, v, S, d, p.scale, out + r * d, x, stride);
                continue;
            }
            for (int64_t s = 0; s < S; s += P)
                for (int j = 0; j < P; j++)
                    for (int64_t c = 0; c < d; c++) panels[s * d + c * P + j] = s + j < S ? k[(s + j) * d + c] : 0;
            for (int64_t i = 0; i < queries; i += ROWS)
                for (int64_t r = 0; r < R; r++) {
                    const float *from[ROWS];
                    float *to[ROWS];
                    int64_t ends[ROWS];
                    for (int n = 0; n < ROWS; n++) {
                        const int64_t own = i + n < queries ? i + n : queries - 1;  // the last one more than once
                        from[n] = q + own * p.q_token + r * p.q_head;
                        to[n] = out + (own * p.H + r) * d;
                        ends[n] = before + own + 1;
                    }
                    tokens<W>(from, panels, v, ends, d, p.scale, to, x, stride);
                }
        }
    }
    free(x);
    return 0;
}

// The number is the layout's of `Problem`: a library that was built from older sources is not taken for this one.
#define ENTRY extern "C" __attribute__((visibility("default"))) int rllib_vlm_attend_1

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static int attend_avx2(const Problem &p) { return attend<8>(p); }
__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))) static int attend_avx512(const Problem &p) {
    return attend<16>(p);
}

// 0: done, 1: no memory, 2: not for this processor, 3: a buffer is too small, 4: neither as many queries as new tokens
// nor one.
ENTRY(const Problem *p) {
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) return attend_avx512(*p);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return attend_avx2(*p);
    return 2;
}
#else
ENTRY(const Problem *p) { return attend<4>(*p); }
#endif
