/**
 * RCPPS and RSQRTPS (SDM 2B): approximations with a relative error of at most 1.5 * 2^-12. The tables of real processors
 * differ between makers and are not published; these are the answers of an AMD EPYC. Twelve bits of the operand's fraction
 * count, and the result has twelve. Denormal operands are zeros, tiny results become zeros, no exception is raised.
 */

/**
 * Fractions of the results in [1/2, 1), in units of 2^-13: three hexadecimal digits for every 8 bits of the operand's
 * fraction, less what the next 4 bits take off, a digit of base 36 each, by the first 4 of the 8.
 */
interface Table {
  readonly bases: string;
  readonly steps: readonly string[];
}

// biome-ignore format: tables
const RECIPROCAL: Table = {
  bases:
    "ffefdefbff9ff81f62f43f25f07ee9ecbeaee91e74e57e3ae1ce00de4dc9dadd92d77d5cd41d26d0ccf2cd8cbeca4c8b" +
    "c70c57c3ec25c0dbf4bdcbc4bacb94b7db65b4eb37b20b09af1adbac4aaea98a82a6ca56a41a2ba16a019ec9d79c29ae" +
    "99898497095c94893492090d8f98e68d28bf8ac89988687486184f83c82a8188067f47e27d07bf7ad79c78a779768757" +
    "7457347247137026f26e26d16c16b16a16916816726626526426336236146055f65e75d85c95ba5ac59d58f580572563" +
    "55554753852a51d50f5014f34e64d84ca4bd4b04a249548847a46d46045344743a42d4204144073fb3ee3e23d63c93bd" +
    "3b13a539938d38137536935e35234633b32f32431830d3022f62eb2e02d52ca2bf2b42a929e29328827e27326925e253" +
    "24823e23422921f21520b2011f61ec1e21d81cf1c51bb1b11a719e19418a18117716e16415b15114813f13612c12311a" +
    "1101070fe0f50ec0e30db0d20c90c00b70af0a609d09508c08407b07306a06205a051049041039030028020018010008",
  steps: [
    "023579bdfhikmoqs", "013568abdfgiklnp", "0134578abdeghjkm", "01245689acdeghik",
    "012346789bcdefhi", "012456789abcefgh", "0123456789abcdef", "01234556789abcde",
    "012234567889abcd", "0112345567899abc", "0122344567789aab", "011233455677899a",
    "0012233455677889", "0012233455667889", "0011223345566778", "0011223445566778",
  ],
};

// biome-ignore format: tables
const ROOT_EVEN: Table = {
  bases:
    "ffffeffdffd0fc0fb0fa1f92f82f73f64f55f46f37f28f1af0befceeeedfed1ec3eb5ea7e99e8be7de6fe61e54e46e39" +
    "e2be1ee10e03df6de9ddcdcfdc2db5da9d9cd8fd83d76d6ad5dd51d44d38d2cd20d14d08cfccf0ce5cd9ccdcc2cb6cab" +
    "c9ec93c88c7cc71c66c5bc50c45c3ac2fc24c19c0ec04bf9beebe4bd9bcfbc4bbabafba5b9bb91b86b7cb72b68b5eb54" +
    "b4ab40b36b2cb22b19b0fb05afcaf2ae9adfad6accac3abaab0aa7a9ea94a8ba82a79a70a67a5ea55a4ca43a3ba32a29" +
    "a21a18a0fa079fe9f69ed9e59dc9d49cb9c39bb9b29aa9a299999198998197997196996195995194994193993292a922" +
    "91a91290b9038fb8f48ec8e58dd8d68ce8c78bf8b88b18a98a289b89488d88587e87787086986285b85484d84683f838" +
    "83082982281c81580e8078007fa7f37ec7e67df7d87d27cb7c57be7b87b17ab7a479e79779178b78477e77877176b765" +
    "75e75875274c74674073a73372d72772171b71570f7097036fd6f76f16eb6e56e06da6d46ce6c86c36bd6b76b16ac6a6",
  steps: [
    "01234567789abcde", "01233456789aabcd", "012234566789abbc", "0122344567789aab",
    "001223455677899a", "011233455667889a", "0012233445667889", "0011223445566788",
    "0112233445566778", "0011223344556677", "0011223334455667", "0112223344556667",
    "0011122333445566", "0011222334445556", "0011122333445556", "0001112233344455",
  ],
};

// biome-ignore format: tables
const ROOT_ODD: Table = {
  bases:
    "6a069568a67e67366965e65364863d63362861d6136085fe5f35e95df5d45ca5c05b65ac5a259958f58557b57256855f" +
    "55554b54253952f52651d51450b5024f94f04e74de4d54cc4c34bb4b24a94a149849048747f47746e46645e45544d445" +
    "43d43542d42541d41540d4053fd3f53ee3e63de3d73cf3c83c03b93b13aa3a239b39438c38537e37736f36836135a353" +
    "34c34533e33733032932231b31530e3073002fa2f32ec2e62df2d92d22cc2c52bf2b82b22ac2a529f29929228c286280" +
    "27927326d26726125b25524f24924323d23723122b22522021a21420e2092031fd1f71f21ec1e71e11db1d61d01cb1c5" +
    "1c01bb1b51b01aa1a51a019a19519018a18518017b17617016b16616115c15715214d14814313e13913412f12a125120" +
    "11a11611110c1071020fd0f90f40ef0ea0e60e10dc0d80d30ce0ca0c50c10bc0b70b30ae0aa0a50a109c09809308f08b" +
    "08608207d07907507006c06806305f05b05705204e04a04604103d03903503102d02902402001c01801401000c008004",
  steps: [
    "011233455677899a", "0012233455677899", "0012233445667788", "0012233445566778",
    "0011223344556677", "0111223344556667", "0011222334455566", "0011222334445566",
    "0001122233344555", "0011122233344455", "0011122233344455", "0111222333444455",
    "0001112222333444", "0001112222333444", "0011112222333344", "0011112222333344",
  ],
};

/** Fraction of the result by the upper 12 bits of the operand's fraction. */
function expand({ bases, steps }: Table): Uint16Array {
  return Uint16Array.from({ length: 4096 }, (_, i) => {
    const base = Number.parseInt(bases.slice((i >> 4) * 3, (i >> 4) * 3 + 3), 16);
    return base - Number.parseInt(steps[i >> 8][i & 15], 36);
  });
}

const reciprocal = expand(RECIPROCAL);
const rootOfEven = expand(ROOT_EVEN);
const rootOfOdd = expand(ROOT_ODD);

const INDEFINITE = 0xffc0_0000 | 0;
const INFINITY = 0x7f80_0000;
const MAGNITUDE = 0x7fff_ffff;
const LEAST_NORMAL = 0x0080_0000;
const QUIET = 0x0040_0000;
const BIAS = 127;
/** Bits below the 12 that count. */
const DROPPED = 11;

const index = (x: number): number => (x >> DROPPED) & 0xfff;

/** A result between 2^(exponent - 1) and 2^exponent. */
function compose(sign: number, exponent: number, fraction: number): number {
  const biased = exponent - 1 + BIAS;
  return biased <= 0 ? sign : sign | (biased << 23) | (fraction << DROPPED);
}

/** 1 / x, both as bits of single precision. */
export function approximateReciprocal(x: number): number {
  const magnitude = x & MAGNITUDE;
  const sign = x & ~MAGNITUDE;
  if (magnitude > INFINITY) return x | QUIET;
  if (magnitude === INFINITY) return sign;
  if (magnitude < LEAST_NORMAL) return sign | INFINITY;
  return compose(sign, BIAS - (magnitude >> 23), reciprocal[index(x)]);
}

/** 1 / sqrt(x), both as bits of single precision. */
export function approximateReciprocalRoot(x: number): number {
  const magnitude = x & MAGNITUDE;
  const sign = x & ~MAGNITUDE;
  if (magnitude > INFINITY) return x | QUIET;
  if (magnitude < LEAST_NORMAL) return sign | INFINITY;
  if (sign !== 0) return INDEFINITE;
  if (magnitude === INFINITY) return 0;
  const exponent = (magnitude >> 23) - BIAS;
  return compose(0, -(exponent >> 1), (exponent & 1 ? rootOfOdd : rootOfEven)[index(x)]);
}
