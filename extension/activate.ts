/** What both entries share: everything the extension registers. */
import * as vscode from "vscode";
import { registerCommands } from "./commands";
import { HyperstepConfigurations, recentConfigurations } from "./configuration";
import { ExitsView } from "./exits-view";
import type { Platform } from "./platform";
import { SerialTerminals } from "./serial-terminals";
import { DEBUG_TYPE, Sessions } from "./sessions";
import { StatusBar } from "./status-bar";
import { VmcsView } from "./vmcs-view";

export function activateHyperstep(context: vscode.ExtensionContext, platform: Platform): void {
  const sessions = new Sessions();
  const recent = recentConfigurations(context.workspaceState);
  const configurations = new HyperstepConfigurations(platform, recent);
  const vmcs = new VmcsView(sessions);
  const exits = new ExitsView(sessions);
  const terminals = new SerialTerminals(sessions);
  context.subscriptions.push(
    sessions,
    vmcs,
    exits,
    terminals,
    new StatusBar(sessions),
    vscode.debug.registerDebugAdapterDescriptorFactory(DEBUG_TYPE, platform.adapters),
    vscode.debug.registerDebugConfigurationProvider(DEBUG_TYPE, configurations),
    vscode.debug.registerDebugConfigurationProvider(
      DEBUG_TYPE,
      { provideDebugConfigurations: (folder) => configurations.found(folder) },
      vscode.DebugConfigurationProviderTriggerKind.Dynamic,
    ),
    ...registerCommands({ context, platform, sessions, configurations, vmcs, exits, terminals }),
  );
}
