/* The bytes of a zlib stream (RFC 1950, RFC 1951), for pictures whose size is known beforehand.
 *
 * Bits are taken from a word of 64 that is filled 8 bytes at a time; one look into a table gives a
 * symbol, how many bits it took and how many follow it. Codes longer than the table is wide go
 * through a second table. The checksum at the end is not looked at.
 */
#ifndef TONA_INFLATE_H
#define TONA_INFLATE_H

#include "guest.h"

enum {
    LITERAL_BITS = 11,
    DISTANCE_BITS = 8,
    LITERALS = 288,
    DISTANCES = 32,
    LENGTH_CODES = 19,
    CODE_MAX_BITS = 15,
    TABLE_ROOM = 4096, /* both tables with their second ones stay below (Kraft) */
    MATCH_MAX_BYTES = 258,
    SLACK_BYTES = MATCH_MAX_BYTES + 16,
    PAST_MAX_BYTES = 16,
    TURN_BYTES = MATCH_MAX_BYTES + 5
};

/* How a block stands. */
enum { DAMAGED, ENDED, MORE };

/* An entry: base value above, then flags, extra bits, bits of the code. */
#define ENTRY(base, flags, extra, bits) \
    ((uint32_t)(base) << 16 | (flags) | (uint32_t)(extra) << 8 | (uint32_t)(bits))
#define BASE(entry) ((entry) >> 16)
#define EXTRA(entry) ((entry) >> 8 & 15)
#define BITS(entry) ((entry) & 31)
enum { IS_LITERAL = 1 << 12, IS_END = 1 << 13, IS_SECOND = 1 << 14, IS_BAD = 1 << 15 };

typedef struct {
    const uint8_t *in;
    const uint8_t *in_end;
    uint64_t word;
    int held;
    int past; /* bytes that were taken behind the end */
    uint8_t *out;
    uint8_t *out_start;
    uint8_t *out_end;
    uint32_t *literals;
    uint32_t *distances;
} Inflate;

static const uint16_t LENGTH_BASE[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                       31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t LENGTH_EXTRA[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                       2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t DISTANCE_BASE[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,
                                         33,  49,  65,  97,  129, 193,  257,  385,  513,  769,
                                         1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};

static inline void refill(Inflate *z) {
    if (z->in_end - z->in >= 8) {
        uint64_t more;
        __builtin_memcpy(&more, z->in, 8);
        z->word |= more << z->held;
        z->in += (63 - z->held) >> 3;
        z->held |= 56;
        return;
    }
    while (z->held <= 56) {
        if (z->in < z->in_end) z->word |= (uint64_t)*z->in++ << z->held;
        else z->past++;
        z->held += 8;
    }
}

/* At most 16 bits; the word has them. */
static inline uint32_t bits(Inflate *z, int count) {
    uint32_t found = (uint32_t)z->word & ((1u << count) - 1);
    z->word >>= count;
    z->held -= count;
    return found;
}

static uint32_t literal_entry(int symbol, int length) {
    if (symbol < 256) return ENTRY(symbol, IS_LITERAL, 0, length);
    if (symbol == 256) return ENTRY(0, IS_END, 0, length);
    if (symbol > 285) return ENTRY(0, IS_BAD, 0, length);
    return ENTRY(LENGTH_BASE[symbol - 257], 0, LENGTH_EXTRA[symbol - 257], length);
}

static uint32_t distance_entry(int symbol, int length) {
    if (symbol > 29) return ENTRY(0, IS_BAD, 0, length);
    return ENTRY(DISTANCE_BASE[symbol], 0, symbol < 2 ? 0 : symbol / 2 - 1, length);
}

static uint32_t length_entry(int symbol, int length) { return ENTRY(symbol, IS_LITERAL, 0, length); }

static uint32_t reversed(uint32_t code, int length) {
    code = (code >> 1 & 0x5555) | (code & 0x5555) << 1;
    code = (code >> 2 & 0x3333) | (code & 0x3333) << 2;
    code = (code >> 4 & 0x0F0F) | (code & 0x0F0F) << 4;
    return ((code >> 8) | (code & 0xFF) << 8) >> (16 - length);
}

/* Fills a table for canonical codes of these lengths; 0 when there are more codes than fit. A code
 * that nothing has is bad when it comes. */
static int build(uint32_t *table, const uint8_t *lengths, int count, int wide,
                 uint32_t (*entry)(int, int)) {
    uint32_t sizes[CODE_MAX_BITS + 1] = {0}, code = 0, room = 1u << wide;
    uint16_t sorted[LITERALS], first[CODE_MAX_BITS + 2] = {0};
    for (int i = 0; i < count; i++) sizes[lengths[i]]++;
    for (int length = 1; length <= CODE_MAX_BITS; length++)
        first[length + 1] = (uint16_t)(first[length] + sizes[length]);
    for (int i = 0; i < count; i++)
        if (lengths[i]) sorted[first[lengths[i]]++] = (uint16_t)i;
    for (uint32_t i = 0; i < 1u << wide; i++) table[i] = ENTRY(0, IS_BAD, 0, 1);
    const uint16_t *next = sorted;
    for (int length = 1; length <= CODE_MAX_BITS; length++, code <<= 1) {
        if (code + sizes[length] > 1u << length) return 0;
        for (uint32_t left = sizes[length]; left; left--) {
            int symbol = *next++;
            uint32_t turned = reversed(code++, length), low = turned & ((1u << wide) - 1);
            if (length <= wide) {
                uint32_t found = entry(symbol, length);
                for (uint32_t at = turned; at < 1u << wide; at += 1u << length) table[at] = found;
                continue;
            }
            int more = CODE_MAX_BITS - wide;
            if (!(table[low] & IS_SECOND)) {
                if (room + (1u << more) > TABLE_ROOM) return 0;
                table[low] = ENTRY(room, IS_SECOND, more, wide);
                for (int i = 0; i < 1 << more; i++) table[room + i] = ENTRY(0, IS_BAD, 0, 1);
                room += 1u << more;
            }
            uint32_t *second = table + BASE(table[low]);
            for (uint32_t at = turned >> wide; at < 1u << more; at += 1u << (length - wide))
                second[at] = entry(symbol, length - wide);
        }
    }
    return 1;
}

static inline uint32_t symbol(Inflate *z, const uint32_t *table, int wide) {
    uint32_t entry = table[z->word & ((1u << wide) - 1)];
    if (entry & IS_SECOND) {
        z->word >>= wide, z->held -= wide;
        entry = table[BASE(entry) + (z->word & ((1u << EXTRA(entry)) - 1))];
    }
    z->word >>= BITS(entry), z->held -= (int)BITS(entry);
    return entry;
}

static int fixed_tables(Inflate *z) {
    uint8_t lengths[LITERALS], five[DISTANCES];
    for (int i = 0; i < LITERALS; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    __builtin_memset(five, 5, sizeof five);
    return build(z->literals, lengths, LITERALS, LITERAL_BITS, literal_entry) &&
           build(z->distances, five, DISTANCES, DISTANCE_BITS, distance_entry);
}

static int told_tables(Inflate *z) {
    static const uint8_t ORDER[LENGTH_CODES] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint8_t own[LENGTH_CODES] = {0}, lengths[LITERALS + DISTANCES] = {0};
    refill(z);
    int literals = (int)bits(z, 5) + 257, distances = (int)bits(z, 5) + 1;
    int told = (int)bits(z, 4) + 4, count = literals + distances;
    if (literals > LITERALS) return 0;
    for (int i = 0; i < told; i++) {
        refill(z);
        own[ORDER[i]] = (uint8_t)bits(z, 3);
    }
    if (!build(z->distances, own, LENGTH_CODES, DISTANCE_BITS, length_entry)) return 0;
    for (int i = 0; i < count;) {
        refill(z);
        uint32_t entry = symbol(z, z->distances, DISTANCE_BITS);
        uint32_t code = BASE(entry);
        if (entry & IS_BAD || z->past > PAST_MAX_BYTES) return 0;
        if (code < 16) {
            lengths[i++] = (uint8_t)code;
            continue;
        }
        int times = code == 16 ? 3 + (int)bits(z, 2) : code == 17 ? 3 + (int)bits(z, 3)
                                                                  : 11 + (int)bits(z, 7);
        if (i + times > count || (code == 16 && i == 0)) return 0;
        uint8_t value = code == 16 ? lengths[i - 1] : 0;
        for (; times; times--) lengths[i++] = value;
    }
    return build(z->literals, lengths, literals, LITERAL_BITS, literal_entry) &&
           build(z->distances, lengths + literals, distances, DISTANCE_BITS, distance_entry);
}

/* Copies a match; up to 15 bytes behind it may be written. */
static inline void repeat(uint8_t *out, uint32_t distance, uint32_t length) {
    const uint8_t *from = out - distance;
    uint8_t *end = out + length;
    if (distance >= 16) {
        for (; out < end; out += 16, from += 16) __builtin_memcpy(out, from, 16);
    } else if (distance == 1) {
        __builtin_memset(out, *from, length);
    } else {
        while (out < end) *out++ = *from++;
    }
}

/* Most of a picture: as `coded_block`, as long as 8 bytes of input are left and a whole turn's output
 * has room. Of `held` the low six bits count alone, so that an entry is taken off as it is. */
static int coded_block_fast(Inflate *z) {
    const uint32_t *literals = z->literals, *distances = z->distances;
    const uint8_t *in = z->in, *start = z->out_start;
    uint8_t *out = z->out;
    uint64_t word = z->word;
    uint32_t held = (uint32_t)z->held, entry = 0;
    int state = MORE;
#define TAKE(count) (word >>= (count) & 63, held -= (count))
#define LOOK(table, wide) (table)[word & ((1u << (wide)) - 1)]
#define REFILL()                                     \
    do {                                             \
        uint64_t more;                               \
        __builtin_memcpy(&more, in, 8);              \
        word |= more << (held & 63);                 \
        in += (~held & 63) >> 3;                     \
        held |= 56;                                  \
    } while (0)
#define LITERAL() (TAKE(entry), *out++ = (uint8_t)BASE(entry), entry = LOOK(literals, LITERAL_BITS))
    while (z->in_end - in >= 2 * 8 && z->out_end - out >= TURN_BYTES) {
        REFILL();
        entry = LOOK(literals, LITERAL_BITS);
        /* four of 11 bits; 12 are left for a fifth look */
        if (entry & IS_LITERAL) {
            LITERAL();
            if (entry & IS_LITERAL) {
                LITERAL();
                if (entry & IS_LITERAL) {
                    LITERAL();
                    if (entry & IS_LITERAL) {
                        LITERAL();
                        if (entry & IS_LITERAL) {
                            TAKE(entry);
                            *out++ = (uint8_t)BASE(entry);
                            continue;
                        }
                    }
                }
            }
        }
        REFILL();
        if (entry & IS_SECOND) {
            TAKE(LITERAL_BITS);
            entry = literals[BASE(entry) + (word & ((1u << EXTRA(entry)) - 1))];
        }
        TAKE(entry);
        if (entry & IS_LITERAL) {
            *out++ = (uint8_t)BASE(entry);
            continue;
        }
        if (entry & (IS_END | IS_BAD)) {
            state = entry & IS_END ? ENDED : DAMAGED;
            break;
        }
        uint32_t length = BASE(entry) + ((uint32_t)word & ((1u << EXTRA(entry)) - 1));
        TAKE(EXTRA(entry));
        entry = LOOK(distances, DISTANCE_BITS);
        if (entry & IS_SECOND) {
            TAKE(DISTANCE_BITS);
            entry = distances[BASE(entry) + (word & ((1u << EXTRA(entry)) - 1))];
        }
        TAKE(entry);
        uint32_t distance = BASE(entry) + ((uint32_t)word & ((1u << EXTRA(entry)) - 1));
        TAKE(EXTRA(entry));
        if (entry & IS_BAD || distance > (uint32_t)(out - start)) {
            state = DAMAGED;
            break;
        }
        repeat(out, distance, length);
        out += length;
    }
#undef LITERAL
#undef REFILL
#undef LOOK
#undef TAKE
    z->in = in, z->out = out, z->word = word, z->held = (int)(held & 63);
    return state;
}

/* 1 at the end of the block or of the room, 0 when it is damaged. The state is a copy, for what is
 * written to `out` could else be part of it, and none of it would stay in registers. */
static int coded_block(Inflate *from) {
    int state = coded_block_fast(from);
    if (state != MORE) return state == ENDED;
    Inflate own = *from, *z = &own;
    const uint32_t *literals = own.literals, *distances = own.distances;
    const uint8_t *start = own.out_start, *end = own.out_end;
    uint8_t *out = own.out;
    int good = 1;
    while (out < end) {
        refill(z);
        uint32_t entry = symbol(z, literals, LITERAL_BITS);
        /* three literals take 45 of 56 bits */
        if (entry & IS_LITERAL) {
            *out++ = (uint8_t)BASE(entry);
            entry = symbol(z, literals, LITERAL_BITS);
            if (entry & IS_LITERAL) {
                *out++ = (uint8_t)BASE(entry);
                entry = symbol(z, literals, LITERAL_BITS);
                if (entry & IS_LITERAL) {
                    *out++ = (uint8_t)BASE(entry);
                    continue;
                }
            }
        }
        if (entry & (IS_END | IS_BAD) || z->past > PAST_MAX_BYTES) {
            good = !(entry & IS_BAD) && z->past <= PAST_MAX_BYTES;
            break;
        }
        refill(z);
        uint32_t length = BASE(entry) + bits(z, (int)EXTRA(entry));
        entry = symbol(z, distances, DISTANCE_BITS);
        uint32_t distance = BASE(entry) + bits(z, (int)EXTRA(entry));
        good = !(entry & IS_BAD) && distance <= (uint32_t)(out - start);
        if (!good) break;
        repeat(out, distance, length);
        out += length;
    }
    own.out = out;
    *from = own;
    return good;
}

static int plain_block(Inflate *z) {
    bits(z, z->held & 7);
    z->in -= z->held >> 3;
    z->in += z->past;
    z->word = 0, z->held = 0;
    if (z->past || z->in_end - z->in < 4) return 0;
    uint32_t count = (uint32_t)z->in[0] | (uint32_t)z->in[1] << 8;
    uint32_t check = (uint32_t)z->in[2] | (uint32_t)z->in[3] << 8;
    z->in += 4;
    if ((count ^ check) != 0xFFFF || (size_t)(z->in_end - z->in) < count) return 0;
    uint32_t room = z->out < z->out_end ? (uint32_t)(z->out_end - z->out) : 0;
    uint32_t taken = count < room ? count : room;
    __builtin_memcpy(z->out, z->in, taken);
    z->out += taken, z->in += count;
    return 1;
}

/* Writes at most `room` bytes and says how many; -1 when the stream is damaged, -2 without memory.
 * `out` has SLACK_BYTES more. What is beyond the room is not looked at. */
static int inflate(const uint8_t *in, size_t in_bytes, int has_header, uint8_t *out, size_t room) {
    Inflate z = {.in = in, .in_end = in + in_bytes, .out = out, .out_start = out};
    z.out_end = out + room;
    z.literals = take(TABLE_ROOM * sizeof(uint32_t));
    z.distances = take(TABLE_ROOM * sizeof(uint32_t));
    if (!z.literals || !z.distances) return -2;
    if (has_header) {
        if (in_bytes < 2 || (in[0] & 15) != 8 || (in[0] << 8 | in[1]) % 31 || in[1] & 32) return -1;
        z.in += 2;
    }
    for (int last = 0; !last && z.out < z.out_end;) {
        refill(&z);
        last = (int)bits(&z, 1);
        uint32_t kind = bits(&z, 2);
        int good = kind == 0   ? plain_block(&z)
                   : kind == 1 ? fixed_tables(&z) && coded_block(&z)
                   : kind == 2 ? told_tables(&z) && coded_block(&z)
                               : 0;
        /* what was made of bits behind the end is nothing */
        if (!good || z.past * 8 > z.held) return -1;
    }
    size_t given = (size_t)(z.out - out);
    return (int)(given < room ? given : room);
}

#endif
