#include "options.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fatal.h"

static struct ma_options options = {
#define WORD(key, initial, words, help) .key = 0,
#define SIZE(key, initial, least, most, help) .key = initial,
#include "options.def"
#undef WORD
#undef SIZE
};

/* The word's place in "first|second|...", from 1; 0 if it is none of them. */
static unsigned
word_number (const char *words, const char *word, size_t length)
{
  unsigned number = 1;
  for (;;)
    {
      size_t n = strcspn (words, "|");
      if (n == length && memcmp (words, word, n) == 0)
        return number;
      if (words[n] == '\0')
        return 0;
      words += n + 1;
      number++;
    }
}

/* 1 and *out when TEXT is digits and an optional unit, within the bounds. */
static int
size_value (const char *text, size_t length, size_t least, size_t most, size_t *out)
{
  size_t value = 0;
  size_t i = 0;
  for (; i < length && text[i] >= '0' && text[i] <= '9'; i++)
    if (__builtin_mul_overflow (value, 10, &value)
        || __builtin_add_overflow (value, (size_t)(text[i] - '0'), &value))
      return 0;
  if (i == 0)
    return 0;
  if (i < length)
    {
      static const char units[] = "KMGT";
      const char *unit = memchr (units, text[i] & ~0x20, sizeof units - 1);
      if (unit == NULL || i + 1 != length)
        return 0;
      size_t factor = (size_t)1024 << (10 * (unit - units));
      if (__builtin_mul_overflow (value, factor, &value))
        return 0;
    }
  *out = value;
  return value >= least && value <= most;
}

static _Noreturn void
bad (const char *option, size_t length, const char *allowed, size_t least, size_t most)
{
  char text[128];
  if (length > sizeof text - 1)
    length = sizeof text - 1;
  memcpy (text, option, length);
  text[length] = '\0';
  if (allowed != NULL)
    ma_fatal ("bad option: ", text, " (allowed: ", allowed, ")", NULL);
  char low[24];
  char high[24];
  ma_fatal ("bad option: ", text, " (allowed: ", ma_decimal (low, least), " to ",
            ma_decimal (high, most), " bytes, K, M, G and T are understood)", NULL);
}

static void
set (const char *option, size_t length)
{
  const char *equals = memchr (option, '=', length);
  size_t key_length = equals != NULL ? (size_t)(equals - option) : length;
  const char *value = equals != NULL ? equals + 1 : option + length;
  size_t value_length = (size_t)(option + length - value);
#define WORD(key, initial, words, help)                                                            \
  if (key_length == strlen (#key) && memcmp (option, #key, key_length) == 0)                       \
    {                                                                                              \
      options.key = word_number (words, value, value_length);                                      \
      if (options.key == 0)                                                                        \
        bad (option, length, words, 0, 0);                                                         \
      return;                                                                                      \
    }
#define SIZE(key, initial, least, most, help)                                                      \
  if (key_length == strlen (#key) && memcmp (option, #key, key_length) == 0)                       \
    {                                                                                              \
      if (!size_value (value, value_length, least, most, &options.key))                            \
        bad (option, length, NULL, least, most);                                                   \
      return;                                                                                      \
    }
#include "options.def"
#undef WORD
#undef SIZE
  bad (option, length,
#define WORD(key, initial, words, help) #key " "
#define SIZE(key, initial, least, most, help) #key " "
#include "options.def"
#undef WORD
#undef SIZE
       "are the keys", 0, 0);
}

static void
parse (void)
{
#define WORD(key, initial, words, help)                                                            \
  options.key = word_number (words, initial, sizeof initial - 1);
#define SIZE(key, initial, least, most, help)
#include "options.def"
#undef WORD
#undef SIZE
  const char *text = secure_getenv ("MALLOC_ARENA_OPTIONS");
  while (text != NULL && *text != '\0')
    {
      size_t length = strcspn (text, ",");
      if (length != 0)
        set (text, length);
      text += length + (text[length] == ',');
    }
}

const struct ma_options *
ma_options (void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once (&once, parse);
  return &options;
}
