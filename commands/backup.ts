// stub
import type { Command } from './command.ts'
export const command: Command = { name: 'backup', summary: '', usage: 'Usage: backup\n', options: {}, run: async () => 0 }
