/** Every byte of an IA32_PAT value is a memory type: UC, WC, WT, WP, WB or UC- (SDM 3A 12.12.2). */
export function patOk(pat: bigint): boolean {
  for (let i = 0n; i < 64n; i += 8n) {
    const type = Number((pat >> i) & 0xffn);
    if (type > 7 || type === 2 || type === 3) return false;
  }
  return true;
}
