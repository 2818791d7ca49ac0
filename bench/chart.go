package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func chartCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "chart FILE",
		Short: "Draw the chart of a result file",
		RunE:  func(*cobra.Command, []string) error { return errors.New("not yet") },
	}
}
