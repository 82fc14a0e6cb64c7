/* The bytes of a slot, by each of the ways that a CPU may take: what is given out is zero but for its
 * canary, what is taken back is zero and next to it nothing has changed, and one byte that should not be
 * there is seen, wherever it is. The library itself takes one way only on each machine. */
#include "check.h"

#include "slot.h"

enum
{
  MARGIN = 64, /* more than any vector reaches beyond */
  MOST = 2048  /* slot with a shape */
};

union ma_sealed_page ma_sealed_page;
const unsigned char ma_slot_masks[384] = SLOT_MASKS;

static _Alignas (64) unsigned char memory[MARGIN + 48 + MOST + MARGIN];
static unsigned char *bytes; /* of the slot: at any multiple of 16 */
static struct ma_unit unit;

struct way
{
  const char *name;
  int (*take) (const struct ma_unit *, char *, size_t);
  int (*give) (const struct ma_unit *, char *, size_t);
  size_t least; /* slot */
  size_t most;
  size_t longest; /* canary; 0: of the slot's own sizes */
};

#define SHAPE(group)                                                                               \
  MA_VECTORS static int take_##group (const struct ma_unit *u, char *p, size_t size)               \
  {                                                                                                \
    return slot_take (group, u, p, size);                                                          \
  }                                                                                                \
  MA_VECTORS static int give_##group (const struct ma_unit *u, char *p, size_t size)               \
  {                                                                                                \
    return slot_give (group, u, p, size);                                                          \
  }

SHAPE (MA_UP_TO_48)
SHAPE (MA_UP_TO_144)
SHAPE (MA_UP_TO_288)
SHAPE (MA_UP_TO_2048)
#ifdef MA_WIDE
SHAPE (MA_UPPER_48)
SHAPE (MA_UPPER_144)
SHAPE (MA_UPPER_288)
#endif

#ifdef MA_WIDE
#define MIXED(width, target)                                                                       \
  target static int take_mixed_##width (const struct ma_unit *u, char *p, size_t size)             \
  {                                                                                                \
    return slot_take_mixed_##width (u, p, size);                                                   \
  }                                                                                                \
  target static int give_mixed_##width (const struct ma_unit *u, char *p, size_t size)             \
  {                                                                                                \
    return slot_give_mixed_##width (u, p, size);                                                   \
  }

MIXED (32, MA_TARGET_32)
MIXED (64, MA_TARGET_64)
#endif

static int
take_long (const struct ma_unit *u, char *p, size_t size)
{
  if (!ma_is_zero (p, u->slot))
    return 0;
  slot_canary_long (p, size, u->slot);
  return 1;
}

static int
give_long (const struct ma_unit *u, char *p, size_t size)
{
  if (!slot_intact_long (p, size, u->slot))
    return 0;
  ma_wipe_inline (p, u->slot);
  return 1;
}

/* Not by what slot.h says a canary is. */
static int
is_canary (size_t from, size_t to)
{
  for (size_t at = from; at < to; at++)
    if (bytes[at] != (unsigned char)(ma_sealed.canary >> at % 8 * 8))
      return 0;
  return 1;
}

static int
is_around (int byte, size_t slot)
{
  return check_all (memory, byte, (size_t)(bytes - memory))
         && check_all (bytes + slot, byte, MARGIN);
}

static void
look (const struct way *way, size_t size)
{
  size_t slot = unit.slot;
  char *p = (char *)bytes;
#define SEEN(condition)                                                                            \
  if (!(condition))                                                                                \
  CHECK_FAIL ("%s, %zu bytes in a slot of %zu: not so: %s", way->name, size, slot, #condition)

  memset (memory, 0xa5, sizeof memory);
  memset (bytes, 0, slot);
  SEEN (way->take (&unit, p, size));
  SEEN (check_all (bytes, 0, size));
  SEEN (is_canary (size, slot));
  SEEN (is_around (0xa5, slot));
  memset (bytes, 0x5a, size);
  for (size_t at = size; at < slot; at++)
    for (int bit = 1; bit < 256; bit *= 2)
      {
        bytes[at] ^= (unsigned char)bit;
        SEEN (!way->give (&unit, p, size));
        bytes[at] ^= (unsigned char)bit;
      }
  SEEN (check_all (bytes, 0x5a, size) && is_canary (size, slot));
  SEEN (way->give (&unit, p, size));
  SEEN (check_all (bytes, 0, slot));
  SEEN (is_around (0xa5, slot));
  for (size_t at = 0; at < slot; at++)
    {
      bytes[at] = (unsigned char)(1u << at % 8);
      SEEN (!way->take (&unit, p, size));
      bytes[at] = 0;
      SEEN (check_all (bytes, 0, slot));
    }
}

static void
look_all (const struct way *way)
{
  for (unsigned class = 0; class < MA_CLASSES && ma_class_slot[class] <= way->most; class++)
    {
      size_t slot = ma_class_slot[class];
      if (slot < way->least)
        continue;
      unit.slot = (uint16_t)slot;
      unit.middle = slot_middle (slot);
#ifdef MA_WIDE
      for (unsigned i = 0; i < 6; i++)
        unit.step[i] = slot_step (i + 1, slot);
#endif
      size_t least = slot_least (class);
      if (way->longest != 0)
        least = slot > way->longest ? slot - way->longest : 0;
      for (size_t size = least; size <= slot - MA_CANARY; size += slot <= 512 ? 1 : 7)
        {
          bytes = memory + MARGIN + size % 4 * 16;
          look (way, size);
        }
    }
  printf ("%s\n", way->name);
}

int
main (void)
{
  ma_sealed.canary = ma_sealed.canary_again = 0x8182848890a0c0ffu;
  look_all (&(struct way){ "any canary", take_long, give_long, 0, 512, 512 });
#ifdef MA_WIDE
  __builtin_cpu_init ();
  if (!__builtin_cpu_supports ("avx2") || !__builtin_cpu_supports ("bmi2"))
    {
      puts ("left out: vectors of 32 bytes, which this CPU has not");
      return 0;
    }
#endif
#define LOOK_ALL(group, least, most)                                                               \
  look_all (&(struct way){ #group, take_##group, give_##group, least, most, 0 })
  LOOK_ALL (MA_UP_TO_48, 0, 48);
  LOOK_ALL (MA_UP_TO_144, 64, 144);
  LOOK_ALL (MA_UP_TO_288, 160, 288);
  LOOK_ALL (MA_UP_TO_2048, 320, MOST);
#ifdef MA_WIDE
  look_all (&(struct way){ "32 bytes, mixed sizes", take_mixed_32, give_mixed_32, 64, 512, 64 });
  if (!__builtin_cpu_supports ("avx512bw") || !__builtin_cpu_supports ("avx512dq")
      || !__builtin_cpu_supports ("avx512vl"))
    {
      puts ("left out: vectors of 64 bytes, which this CPU has not");
      return 0;
    }
  LOOK_ALL (MA_UPPER_48, 0, 48);
  LOOK_ALL (MA_UPPER_144, 64, 144);
  LOOK_ALL (MA_UPPER_288, 160, 288);
  look_all (&(struct way){ "64 bytes, mixed sizes", take_mixed_64, give_mixed_64, 64, 512, 64 });
#endif
  return 0;
}
