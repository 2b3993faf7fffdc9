/* plate: the lines of text in a photo -> the number plate among them, in plate form.
 *
 *   in   text    uint8[-1]          UTF-8, lines with '\n' between them, as `text` gives them
 *        scores  float32[-1]        of each line
 *        index   int32[-1]          of each line: which of the boxes it stands in
 *        boxes   float32[-1,4,2]    corners
 *        forms   uint8[-1]          one form of plate a line: A a letter, 9 a digit, '.' a place
 *                                   where a round seal may have been read as a character
 *   out  plate   uint8[-1]          letters A-Z and digits; empty when no line looks like a plate
 *        score   float32[-1]        the recogniser's for that line; one value, or none
 *        box     float32[-1,4,2]    where it stands; one box, or none
 *
 * The rule. Of a line its ASCII letters, in upper case, and digits count. It fits a form when each
 * character is a letter or digit as the form says; one may be of the wrong kind if it looks like the
 * right one (O0 I1 Z2 S5 G6 B8) and is put right; at a '.' one round character (B D G O Q S 0 6 8 9)
 * is passed over. The best line is one that fits a form, else one
 * of 5 to 9 characters with letters and digits, else one of 5 to 9 characters; among equals the one
 * that the recogniser was surest of, the upper one at a tie.
 */
#include "../../reading/guests/guest.h"

enum {
    MAX_LINES = 4096,
    MAX_CHARACTERS = 16,
    MIN_PLATE = 5,
    MAX_PLATE = 9,
    MAX_PUT_RIGHT = 1,
    MISFIT = 1000
};

typedef struct {
    uint8_t at[MAX_CHARACTERS];
    int count; /* MAX_CHARACTERS + 1 for a line that is longer */
} Plate;

static const char LETTERS[] = "OIZSGB", DIGITS[] = "012568", ROUND[] = "BDGOQS0689";

static int is_digit(uint8_t c) { return c >= '0' && c <= '9'; }
static int is_letter(uint8_t c) { return c >= 'A' && c <= 'Z'; }

static Plate clean(const uint8_t *line, uint32_t count) {
    Plate plate = {.count = 0};
    for (uint32_t i = 0; i < count && plate.count <= MAX_CHARACTERS; i++) {
        uint8_t c = line[i] >= 'a' && line[i] <= 'z' ? (uint8_t)(line[i] - 32) : line[i];
        if (!is_digit(c) && !is_letter(c)) continue;
        if (plate.count < MAX_CHARACTERS) plate.at[plate.count] = c;
        plate.count++;
    }
    return plate;
}

/* The character of the other kind that looks like this one; 0: there is none. */
static uint8_t look_alike(uint8_t c, const char *from, const char *to) {
    for (int i = 0; from[i]; i++)
        if ((uint8_t)from[i] == c) return (uint8_t)to[i];
    return 0;
}

/* How many characters had to be put right or passed over; MISFIT when the form does not fit.
 * `marked`: a round character stands at each '.' of the form, and is passed over. */
static int fit(const Plate *line, const uint8_t *form, uint32_t count, int marked, Plate *out) {
    int at = 0, cost = 0, wrong = 0;
    out->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (form[i] == '.') {
            if (!marked) continue;
            if (at >= line->count || !look_alike(line->at[at], ROUND, ROUND)) return MISFIT;
            at++, cost++;
            continue;
        }
        if (at >= line->count || out->count == MAX_CHARACTERS) return MISFIT;
        uint8_t c = line->at[at++];
        int as_asked = form[i] == '9' ? is_digit(c) : is_letter(c);
        if (!as_asked) {
            c = form[i] == '9' ? look_alike(c, LETTERS, DIGITS) : look_alike(c, DIGITS, LETTERS);
            if (!c) return MISFIT;
            wrong++;
        }
        out->at[out->count++] = c;
    }
    return at != line->count || wrong > MAX_PUT_RIGHT ? MISFIT : cost + wrong;
}

/* The form that fits best, the first of equals; 0 when none does. */
static int fit_any(const Plate *line, const Port *forms, Plate *out) {
    const uint8_t *bytes = tensor(forms);
    int best = MISFIT;
    for (uint32_t start = 0; start < forms->size_bytes;) {
        uint32_t end = start;
        while (end < forms->size_bytes && bytes[end] != '\n') end++;
        for (int marked = 0; marked < 2; marked++) {
            Plate fitted;
            int cost = end > start ? fit(line, bytes + start, end - start, marked, &fitted) : MISFIT;
            if (cost < best) best = cost, *out = fitted;
        }
        start = end + 1;
    }
    return best < MISFIT;
}

static int rank(const Plate *line, const Port *forms, Plate *out) {
    *out = *line;
    if (line->count > MAX_CHARACTERS) return 0;
    if (fit_any(line, forms, out)) return 3;
    if (line->count < MIN_PLATE || line->count > MAX_PLATE) return 0;
    int letters = 0;
    for (int i = 0; i < line->count; i++) letters += is_letter(line->at[i]);
    return letters > 0 && letters < line->count ? 2 : 1;
}

static int check(const Port *in, uint32_t n_in, uint32_t n_out) {
    if (n_in != 5 || n_out != 3 || !holds(&in[0], UINT8, 1) || !holds(&in[1], FLOAT32, 1) ||
        !holds(&in[2], INT32, 1) || !holds(&in[3], FLOAT32, 3) || in[3].dims[1] != 4 ||
        in[3].dims[2] != 2 || !holds(&in[4], UINT8, 1))
        return fail(BAD_INPUT,
                    "plate takes text uint8[-1], scores float32[-1], index int32[-1], boxes "
                    "float32[-1,4,2], forms uint8[-1] and gives plate, score, box", 0, 0);
    if (in[1].dims[0] != in[2].dims[0] || in[1].dims[0] > MAX_LINES)
        return fail(BAD_INPUT, "there are # scores and # indexes: as many of both, at most 4096",
                    in[1].dims[0], in[2].dims[0]);
    const int32_t *index = tensor(&in[2]);
    for (uint32_t i = 0; i < in[2].dims[0]; i++)
        if (index[i] < 0 || (uint32_t)index[i] >= in[3].dims[0])
            return fail(BAD_INPUT, "an index points beyond the # boxes", in[3].dims[0], 0);
    const uint8_t *forms = tensor(&in[4]);
    for (uint32_t i = 0; i < in[4].size_bytes; i++)
        if (forms[i] != 'A' && forms[i] != '9' && forms[i] != '.' && forms[i] != '\n')
            return fail(BAD_INPUT, "a form of plate has A, 9 and . alone, one form a line", 0, 0);
    return OK;
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    int code = check(in, n_in, n_out);
    if (code) return code;
    const uint8_t *text = tensor(&in[0]);
    const float *scores = tensor(&in[1]);
    uint32_t lines = in[1].dims[0], line = 0, chosen = 0;
    int best = 0;
    Plate *plate = take(sizeof(Plate));
    float *box = take(8 * sizeof(float)), *score = take(sizeof(float));
    if (!plate || !box || !score) return fail_memory();
    plate->count = 0;
    for (uint32_t start = 0; line < lines && start <= in[0].size_bytes; line++) {
        uint32_t end = start;
        while (end < in[0].size_bytes && text[end] != '\n') end++;
        Plate cleaned = clean(text + start, end - start), formed;
        int worth = rank(&cleaned, &in[4], &formed);
        if (worth > best || (worth == best && best && scores[line] > scores[chosen]))
            best = worth, chosen = line, *plate = formed;
        start = end + 1;
    }
    if (line < lines)
        return fail(BAD_INPUT, "the text has # lines, there are # scores", line, lines);
    if (best) {
        const float *corners = tensor(&in[3]);
        int32_t at = ((const int32_t *)tensor(&in[2]))[chosen];
        __builtin_memcpy(box, corners + (size_t)8 * (size_t)at, 8 * sizeof(float));
        *score = scores[chosen];
    }
    out[0].dims[0] = (uint32_t)plate->count;
    give(&out[0], plate->at, UINT8, 1);
    out[1].dims[0] = best > 0;
    give(&out[1], score, FLOAT32, 1);
    out[2].dims[0] = best > 0, out[2].dims[1] = 4, out[2].dims[2] = 2;
    give(&out[2], box, FLOAT32, 3);
    return OK;
}
